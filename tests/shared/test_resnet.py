import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet, build_resnet_backbone
from shared.modeling.resnet import resnet_stages

ALL = ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize(
    "depth, deform, modulated", [(18, False, False), (50, False, False), (50, True, False), (50, True, True)]
)
def test_equals_the_cfg_route(depth, deform, modulated):
    """Same names, shapes and, for a seed, same initial weights."""
    on = [False, deform, deform, deform]
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ALL
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = on
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    torch.manual_seed(3)
    expected = build_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
    torch.manual_seed(3)
    stem = BasicStem(norm="FrozenBN")
    stages = resnet_stages(depth, deform_on_per_stage=on, deform_modulated=modulated)
    actual = ResNet(stem, stages, out_features=ALL).state_dict()
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def test_width_and_stride():
    net = ResNet(
        BasicStem(3, 16, "BN"), resnet_stages(18, stem_channels=16, res2_channels=24, norm="BN"), out_features=ALL
    )
    out = net(torch.zeros(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "res2": (1, 24, 16, 24),
        "res3": (1, 48, 8, 12),
        "res4": (1, 96, 4, 6),
        "res5": (1, 192, 2, 3),
    }


def test_refusals():
    with pytest.raises(ValueError, match="depth must be one of"):
        resnet_stages(20)
    with pytest.raises(ValueError, match="depth 18 has basic blocks"):
        resnet_stages(18, deform_on_per_stage=[False, True, True, True])
