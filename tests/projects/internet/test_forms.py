"""The YAML and the Lazy form build the same parameters; sizes of whole models. All on the meta device: shapes alone."""

import inspect

import pytest
import torch

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from projects.InterNet import (
    ClassBuffer,
    Critic,
    FeatureIntertwiner,
    InterNetCascadeROIHeads,
    InterNetConvFCHead,
    InterNetROIHeads,
    InterNetROIPooler,
    LevelAssigner,
    MakeUp,
    ScaleOT,
)
from shared.config import get_collection_cfg
from tests.paths import ROOT

FASTER_RCNN = 41_699_936  # R-50-FPN, 80 classes
MAKEUP, CRITIC = 590_592, 26_874_368  # see test_units
# three levels; F: 3x3 256 -> 256 with bias, norm, 3x3 with bias; H: 3x3 without bias
GENERATORS, OT_CRITICS = 3 * (2 * (9 * 256 * 256 + 256) + 512), 3 * 9 * 256 * 256


def yaml_model(name="InterNetROIHeads", **overrides):
    """R-50-FPN; overrides: keys of MODEL, with "__" for the dots."""
    cfg = get_collection_cfg()
    cfg.merge_from_file(str(ROOT / "configs/Base-RCNN-FPN.yaml"))
    settings = {"ROI_HEADS__NAME": name, "ROI_BOX_HEAD__NAME": "InterNetConvFCHead", "DEVICE": "meta"}
    settings |= {"BACKBONE__FREEZE_AT": 0, "ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": "Cascade" in name}
    for key, value in (settings | overrides).items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    with torch.device("meta"):
        return build_model(cfg)


def lazy_model(base="faster_rcnn_fpn", makeup=(), critic=(), head=(), buffer=(), intertwiner=(), transport=None):
    """`configs/common/models/{base}` with InterNet's parts; each a dict of what differs from its defaults, or None."""
    model = LazyConfig.load(str(ROOT / f"configs/common/models/{base}.py")).model
    if intertwiner is not None:
        buffer = L(ClassBuffer)(num_classes="${...num_classes}", **dict(buffer))
        transport = transport and L(ScaleOT)(channels=256, **transport)
        intertwiner = L(FeatureIntertwiner)(buffer=buffer, transport=transport, **dict(intertwiner))
    shape = ShapeSpec(channels=256, height=14, width=14)
    box_head = L(InterNetConvFCHead)(input_shape=shape, fc_dims=[1024, 1024], **dict(head))
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    heads = dict(
        _target_=InterNetROIHeads,
        makeup=None if makeup is None else L(MakeUp)(channels=256, **dict(makeup)),
        critic=None if critic is None else L(Critic)(channels=256, **dict(critic)),
        intertwiner=intertwiner,
        box_pooler=L(InterNetROIPooler)(output_size=14, scales=scales, sampling_ratio=0, assigner=L(LevelAssigner)()),
        box_head=box_head,
    )
    if "cascade" in base:
        later = L(InterNetConvFCHead)(input_shape=shape, fc_dims=[1024, 1024], fusion="separate")
        heads.update(_target_=InterNetCascadeROIHeads, box_heads=[heads.pop("box_head"), later, later])
    model.roi_heads.update(**heads)
    with torch.device("meta"):
        return instantiate(model)


def shapes(model):
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def size(module):
    return sum(p.numel() for p in module.parameters())


FORMS = {
    "default": ({}, {}),
    "separate": ({"INTERNET__FUSION": "separate"}, {"head": {"fusion": "separate"}}),
    "GN, units and buffers per level, extra convolution": (
        {
            "INTERNET__NORM": "GN",
            "INTERNET__MAKEUP_PER_LEVEL": True,
            "INTERNET__BUFFER__PER_LEVEL": True,
            "INTERNET__CRITIC_EXTRA_1X1": True,
        },
        {
            "makeup": {"norm": "GN", "num_units": 4},
            "critic": {"norm": "GN", "extra_1x1": True},
            "buffer": {"per_level": True},
        },
    ),
    "OT": ({"INTERNET__LARGE_SOURCE": "d"}, {"intertwiner": {"large_source": "d"}, "transport": {"loss": "ot"}}),
    "OT, affine": (
        {"INTERNET__LARGE_SOURCE": "d", "INTERNET__NORM": "affine"},
        {
            "makeup": {"norm": "affine"},
            "critic": {"norm": "affine"},
            "intertwiner": {"large_source": "d"},
            "transport": {"loss": "ot", "norm": "affine"},
        },
    ),
    "no norm, KL, window, neural and not detached, supervised": (
        {
            "INTERNET__NORM": "",
            "INTERNET__LOSS": "kl",
            "INTERNET__BUFFER__MODE": "partial",
            "INTERNET__BUFFER__DETACH": False,
            "INTERNET__LARGE_SOURCE": "c_neural",
            "INTERNET__OT__GENERATOR": "deconv",
            "INTERNET__BIG_SUPERVISE": True,
        },
        {
            "makeup": {"norm": ""},
            "critic": {"norm": "", "activation": "softmax"},
            "buffer": {"mode": "partial"},
            "intertwiner": {"large_source": "c_neural", "detach": False, "big_supervise": True, "loss": "kl"},
            "transport": {"loss": "none", "generator": "deconv", "norm": ""},
        },
    ),
    "affine": ({"INTERNET__NORM": "affine"}, {"makeup": {"norm": "affine"}, "critic": {"norm": "affine"}}),
    "frozen generators": (
        {"INTERNET__LARGE_SOURCE": "c_neural"},
        {"intertwiner": {"large_source": "c_neural"}, "transport": {"loss": "none"}},
    ),
    "bilinear": (
        {"INTERNET__LARGE_SOURCE": "c_bilinear"},
        {"intertwiner": {"large_source": "c_bilinear"}, "transport": {"loss": "none", "generator": "bilinear"}},
    ),
    "control": ({"INTERNET__BASELINE_MAKEUP": True}, {"intertwiner": None}),
    "control, separate": (
        {"INTERNET__BASELINE_MAKEUP": True, "INTERNET__FUSION": "separate"},
        {"intertwiner": None, "critic": None, "head": {"fusion": "separate"}},
    ),
    "baseline": (
        {"INTERNET__ENABLED": False},
        {"intertwiner": None, "critic": None, "makeup": None, "head": {"fusion": "separate"}},
    ),
    "masks": ({"MASK_ON": True}, {"base": "mask_rcnn_fpn"}),
    "cascade": ({"name": "InterNetCascadeROIHeads"}, {"base": "cascade_faster_rcnn_fpn"}),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_both_forms_build_the_same_parameters(name):
    overrides, changes = FORMS[name]
    one, two = yaml_model(**overrides), lazy_model(**changes)
    assert shapes(one) == shapes(two) and len(shapes(one)) > 200
    assert trained(one) == trained(two)


def test_sizes_of_whole_models():
    """Make-up and critic add 27.46 M: 69.2 M at inference, 42.3 M with "separate"; 27.1 M as "light" 9.6 M."""
    model = yaml_model()
    assert size(model) == FASTER_RCNN + MAKEUP + CRITIC == 69_164_896
    assert size(model.roi_heads.intertwiner) == 0
    model = yaml_model(INTERNET__FUSION="separate")
    assert size(model) - size(model.roi_heads.critic) == FASTER_RCNN + MAKEUP == 42_290_528
    assert size(yaml_model(INTERNET__ENABLED=False)) == FASTER_RCNN
    model = yaml_model(INTERNET__LARGE_SOURCE="d")
    assert size(model.roi_heads.intertwiner) == GENERATORS + OT_CRITICS == 5_311_488
    light = {"INTERNET__ROI_SIZE": 7, "INTERNET__CRITIC_VARIANT": "light"}
    assert size(yaml_model(**light)) == FASTER_RCNN + MAKEUP + 9_572_864


def test_parameters_of_training_alone_lie_below_two_names():
    """So that a tool can take them out of a checkpoint."""
    full = shapes(yaml_model(INTERNET__LARGE_SOURCE="d", INTERNET__FUSION="separate", INTERNET__BIG_SUPERVISE=True))
    control = shapes(yaml_model(INTERNET__BASELINE_MAKEUP=True, INTERNET__FUSION="separate"))
    extra = set(full) - set(control)
    assert set(control) < set(full) and len(extra) > 20
    assert all(name.startswith(("roi_heads.intertwiner.", "roi_heads.critic.")) for name in extra)
    assert "roi_heads.intertwiner.buffer.mean" in extra and "roi_heads.critic.layers.0.weight" in extra


def test_defaults_of_constructors_are_those_of_the_config():
    node = get_collection_cfg().MODEL.INTERNET
    names = {
        LevelAssigner: (node.ASSIGN, {}),
        ClassBuffer: (node.BUFFER, {"dim": node.CRITIC_DIM}),
        FeatureIntertwiner: (node, {"detach": node.BUFFER.DETACH}),
        InterNetConvFCHead: (node, {}),
        InterNetROIHeads: (node, {}),
        InterNetCascadeROIHeads: (node, {}),
        MakeUp: (node, {}),
        Critic: (node, {"variant": node.CRITIC_VARIANT, "extra_1x1": node.CRITIC_EXTRA_1X1, "dim": node.CRITIC_DIM}),
        ScaleOT: (node.OT, {}),
    }
    checked = 0
    for cls, (section, special) in names.items():
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            wanted = special.get(name, section.get(name.upper(), node.get(name.upper(), parameter.default)))
            if parameter.default is not inspect.Parameter.empty and not isinstance(wanted, dict):
                assert parameter.default == wanted, (cls.__name__, name)
                checked += name in special or name.upper() in section or name.upper() in node
    assert checked > 35


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"INTERNET__NUM_LEVELS": 3}, "NUM_LEVELS = 3"),
        ({"INTERNET__ROI_SIZE": 10}, "POOLER_RESOLUTION"),
        ({"INTERNET__CRITIC_DIM": 512}, "CRITIC_DIM"),
        ({"INTERNET__FUSION": "mean"}, "FUSION"),
        ({"INTERNET__MAKEUP_ON": "image"}, "MAKEUP_ON"),
        ({"INTERNET__NORM": "LN"}, "NORM"),
        ({"ROI_BOX_HEAD__NUM_FC": 0, "ROI_BOX_HEAD__NUM_CONV": 1}, "NUM_FC"),
    ],
)
def test_errors(overrides, message):
    with pytest.raises(ValueError, match=message):
        yaml_model(**overrides)
