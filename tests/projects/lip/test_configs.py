"""LIP's configs: both kinds build the same model, ablations in both."""

import pytest
import torch

from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from projects.LIP.backbones import build_lip_densenet_fpn_backbone, build_lip_resnet_backbone
from projects.LIP.densenet import STAGES
from projects.LIP.pooling import LIPPool2d
from shared.config import get_collection_cfg, load_config
from tests.paths import ROOT

FOLDER = ROOT / "projects/LIP/configs"
CLASSIFICATION = ("imagenet", "digits")
DETECTION = sorted(
    p.name
    for p in FOLDER.iterdir()
    if p.suffix in (".py", ".yaml") and not any(word in p.name for word in CLASSIFICATION)
)


def load(name, *overrides):
    return load_config(str(FOLDER / name), overrides)


def tree(module):
    parameters = {k: (tuple(p.shape), p.requires_grad) for k, p in module.named_parameters()}
    return parameters, {k: tuple(b.shape) for k, b in module.named_buffers()}


@pytest.mark.parametrize("name", ["faster_rcnn_lip_r50_fpn_1x", "retinanet_lip_r50_fpn_1x"])
def test_both_kinds_build_the_same_model(name):
    cfg, lazy = load(f"{name}.yaml", "MODEL.DEVICE=meta"), load(f"{name}.py")
    with torch.device("meta"):
        ours, theirs = build_model(cfg), instantiate(lazy.model)
    assert tree(ours) == tree(theirs)
    assert str(ours.backbone) == str(theirs.backbone)  # gates and windows as well
    # RGB in torchvision's normalisation
    assert cfg.INPUT.FORMAT == lazy.dataloader.train.mapper.image_format == lazy.model.input_format == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == list(lazy.model.pixel_mean) == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == list(lazy.model.pixel_std) == [58.395, 57.12, 57.375]
    assert cfg.MODEL.WEIGHTS == lazy.train.init_checkpoint
    assert not ours.backbone.bottom_up.stem.pool.logit.weight.requires_grad
    assert ours.backbone.bottom_up.res3[0].logit_trunk.conv1.norm.weight.requires_grad


def test_both_kinds_start_from_the_same_weights():
    lip, _ = load("faster_rcnn_lip_r50_fpn_1x.yaml"), load("faster_rcnn_lip_r50_fpn_1x.py")
    models = []
    for build in (
        lambda: build_backbone(lip),
        lambda: instantiate(load("faster_rcnn_lip_r50_fpn_1x.py").model.backbone),
    ):
        torch.manual_seed(5)
        models.append(build().state_dict())
    assert list(models[0]) == list(models[1])
    for key, value in models[0].items():
        assert torch.equal(value, models[1][key]), key


def test_ablations_in_both_kinds():
    """Every key of MODEL.LIP, and the same from the command line of a LazyConfig."""
    pairs = [
        ("MODEL.LIP.POOL=softpool", "pooling.kind=softpool"),
        ("MODEL.LIP.LOGIT=projection", "pooling.logit=projection"),
        ("MODEL.LIP.LOGIT_WIDTH=64", "pooling.width=64"),
        ("MODEL.LIP.GATE=8.0", "pooling.gate=8.0"),
        ("MODEL.LIP.GATE=None", "pooling.gate=null"),
        ("MODEL.LIP.SITES=['stem','res4.main']", "sites=[stem,res4.main]"),
        ("MODEL.LIP.KERNEL_AFTER=3", "kernel_after=3"),
        ("MODEL.LIP.FREEZE_STEM_POOL=False", "freeze_stem_pool=false"),
        ("MODEL.BACKBONE.FREEZE_AT=0", "freeze_at=0"),
    ]
    seen = set()
    for cfg_key, lazy_key in pairs:
        cfg = load("faster_rcnn_lip_r50_fpn_1x.yaml", cfg_key)
        lazy = load("faster_rcnn_lip_r50_fpn_1x.py", f"model.backbone.bottom_up.{lazy_key}")
        with torch.device("meta"):
            ours, theirs = build_backbone(cfg), instantiate(lazy.model.backbone)
        assert tree(ours) == tree(theirs) and str(ours) == str(theirs), cfg_key
        seen.add((str(ours), str(tree(ours))))
    assert len(seen) == len(pairs)  # each changes something


def test_logit_init_key():
    for init, zero in (("zero_conv", True), ("random", False)):
        cfg = load("faster_rcnn_lip_r50_fpn_1x.yaml", f"MODEL.LIP.LOGIT_INIT={init}")
        weight = build_lip_resnet_backbone(cfg, ShapeSpec(channels=3)).res5[0].shortcut_pool.logit.weight
        assert (weight.abs().max() == 0) == zero


def test_densenet_builders():
    cfg = get_collection_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_lip_densenet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    lazy = load("faster_rcnn_lip_densenet121_fpn_1x.py")
    with torch.device("meta"):
        ours, theirs = build_backbone(cfg), instantiate(lazy.model.backbone)
    assert tree(ours) == tree(theirs) and str(ours) == str(theirs)
    assert {k: s.stride for k, s in ours.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 7)}
    cfg.MODEL.LIP.DENSENET.SITES = []
    with torch.device("meta"):
        plain = build_lip_densenet_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert not [m for m in plain.modules() if isinstance(m, LIPPool2d)]


def test_refuses_what_lip_resnet_does_not_have():
    for key, value in (("STRIDE_IN_1X1", True), ("RES5_DILATION", 2), ("NUM_GROUPS", 32)):
        cfg = load("faster_rcnn_lip_r50_fpn_1x.yaml", f"MODEL.RESNETS.{key}={value}")
        with pytest.raises(ValueError, match=f"LIP-ResNet needs MODEL.RESNETS.{key}"):
            build_lip_resnet_backbone(cfg, ShapeSpec(channels=3))


def test_schedules():
    for name, iterations in (("r50_fpn_1x", 90_000), ("r50_fpn_2x", 180_000), ("r101_fpn_2x", 180_000)):
        cfg = load(f"faster_rcnn_lip_{name}.py")
        assert cfg.train.max_iter == iterations
        assert cfg.model.backbone.bottom_up.depth == (101 if "r101" in name else 50)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("lip_resnet50_imagenet_90e.py", 23_864_232),
        ("lip_resnet101_imagenet_90e.py", 42_856_360),
        ("lip_densenet121_imagenet_90e.py", 8_690_920),
        ("densenet121_imagenet_90e.py", 7_978_856),
    ],
)
def test_imagenet_configs(name, parameters):
    """The repository's recipe: 90 epochs in steps at 30, 60 and 80, everything decays, all parameters train."""
    cfg = load(name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(p.requires_grad for p in model.parameters())
    assert [round(90 * drop) for drop in cfg.lr_multiplier.drops] == [30, 60, 80]
    assert cfg.optimizer.params.weight_decay_norm is None and cfg.dataloader.train.mapper.image_format == "RGB"
