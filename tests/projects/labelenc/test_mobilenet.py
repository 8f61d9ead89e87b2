"""MobileNetV2: torchvision's blocks, weights and features; frozen parts; both forms of config; builders."""

import pytest
import torch
import torchvision
from torch import nn

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from shared.checkpoint import WeightsCheckpointer
from shared.classification.weights import fit_backbone
from shared.config import get_collection_cfg
from shared.modeling.mobilenet import TAPS, MobileNetV2

LAST_CONV = 320 * 1280 + 2 * 1280  # weights, and the norm's two: torchvision's features[18]


def parameters(module, trained_only=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)


def test_parameters_are_torchvisions():
    ours, theirs = MobileNetV2(norm="BN"), torchvision.models.mobilenet_v2(weights=None)
    assert parameters(theirs.features) == 2_223_872
    assert parameters(ours) == 2_223_872 - LAST_CONV == 1_811_712
    assert set(ours.state_dict()) == {k for k in theirs.state_dict() if not k.startswith(("features.18.", "classif"))}


def test_shapes_and_strides():
    net = MobileNetV2(norm="BN").eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 97, 130))  # odd: rounded up at every stride
    assert {name: tuple(x.shape[1:]) for name, x in maps.items()} == {
        "res2": (24, 25, 33),
        "res3": (32, 13, 17),
        "res4": (96, 7, 9),
        "res5": (320, 4, 5),
    }
    assert {n: (s.channels, s.stride) for n, s in net.output_shape().items()} == {n: t[1:] for n, t in TAPS.items()}


def test_blocks_beyond_the_last_map_are_not_built():
    """Parameters without a gradient would stop DDP."""
    net = MobileNetV2(norm="BN", out_features=["res4", "res2"])
    assert len(net.features) == 14 and list(net.output_shape()) == ["res2", "res4"]
    maps = net(torch.randn(2, 3, 32, 64))
    sum(x.sum() for x in maps.values()).backward()
    assert list(maps) == ["res2", "res4"] and all(p.grad is not None for p in net.parameters())


def published(tmp_path):
    """A file like torchvision's own, with statistics that a test can tell apart."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(net.state_dict(), tmp_path / "mobilenet_v2-b0353104.pth")
    return net, str(tmp_path / "mobilenet_v2-b0353104.pth")


class Detector(nn.Module):
    """What matters of a detector: a pyramid, a head, and a second pyramid for training."""

    def __init__(self):
        super().__init__()
        self.backbone = FPN(MobileNetV2(), ["res3", "res4", "res5"], 8)
        self.label_enc = FPN(MobileNetV2(out_features=["res2"]), ["res2"], 8)


def test_torchvisions_weights_give_its_features(tmp_path):
    theirs, file = published(tmp_path)
    detector = Detector().eval()
    checkpointer = WeightsCheckpointer(detector)
    checkpointer.load(file)
    # 51 convolutions (stem, 16 expanding, 17 depthwise, 17 projecting), each with weight and the norm's four
    assert checkpointer.describe().startswith(
        "a torchvision MobileNetV2: 255 of 255 backbone entries matched (backbone.bottom_up.*), its head is unused "
        "(features.18.0.weight, "
    )
    theirs, x = theirs.double(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    maps = detector.double().backbone.bottom_up(x)
    assert len(maps) == 4
    for name, index in (("res2", 3), ("res3", 6), ("res4", 13), ("res5", 17)):  # the last block of each stride
        torch.testing.assert_close(maps[name], theirs.features[: index + 1](x))


def test_other_files_are_not_taken_for_it():
    ours = MobileNetV2()
    large = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    assert fit_backbone(large, ours) is None
    state = torchvision.models.mobilenet_v2(weights=None).state_dict()
    assert fit_backbone(state, ours).prefix == ""
    assert fit_backbone({**state, "head.weight": torch.zeros(1)}, ours) is None


@pytest.mark.parametrize("freeze_at, last_frozen", [(0, -1), (1, 0), (2, 3), (3, 6), (5, 17)])
def test_frozen_parts(freeze_at, last_frozen):
    net = MobileNetV2(norm="BN", freeze_at=freeze_at)
    for index, block in enumerate(net.features):
        frozen = index <= last_frozen
        assert all(p.requires_grad != frozen for p in block.parameters()), index
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms and all(isinstance(m, FrozenBatchNorm2d) == frozen for m in norms)


def test_frozen_norms_train_no_statistics():
    net = MobileNetV2()  # the default
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in net.modules()) == 51
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net.train()(torch.randn(1, 3, 32, 32))
    assert before and all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_builders():
    cfg = get_collection_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.BACKBONE.FREEZE_AT = 16, 2
    build = BACKBONE_REGISTRY.get
    plain = build("build_mobilenetv2_backbone")(cfg, ShapeSpec(channels=3))
    assert str(plain) == str(MobileNetV2(out_features=["res3", "res4", "res5"], freeze_at=2))
    assert parameters(plain, True) == parameters(MobileNetV2(out_features=["res5"], freeze_at=2), True)
    dense = build("build_retinanet_mobilenetv2_fpn_backbone")(cfg, ShapeSpec(channels=3))
    assert {k: s.stride for k, s in dense.output_shape().items()} == {f"p{i}": 2**i for i in range(3, 8)}
    assert dense.top_block.in_feature == "res5" and dense.top_block.p6.in_channels == 320
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = list(TAPS)
    pyramid = build("build_mobilenetv2_fpn_backbone")(cfg, ShapeSpec(channels=3))
    assert {k: s.stride for k, s in pyramid.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 7)}


@pytest.mark.parametrize(
    "kwargs, sentence",
    [
        ({"norm": ""}, "need a norm"),
        ({"out_features": ["res1"]}, "out_features must be among res2, res3, res4, res5"),
        ({"out_features": []}, "out_features must be among"),
        ({"freeze_at": 6}, r"freeze_at must be in \[0, 5\], got 6"),
        ({"in_channels": 1}, "images of 3 channels, got 1"),
    ],
)
def test_refusals(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        MobileNetV2(**kwargs)
