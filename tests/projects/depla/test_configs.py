"""DEPLA's configs: both kinds build the same model, every switch in both, the recipes."""

import pytest
import torch

from detectron2.config import instantiate
from detectron2.modeling import build_backbone, build_model
from projects.DEPLA import DEPLA, DEPLASpec
from projects.DEPLA.config import spec_of
from projects.DEPLA.fpn import FPN_SPEC
from shared.config import get_collection_cfg, load_config
from shared.modeling.fishnet import FEATURES
from tests.paths import ROOT

FOLDER = ROOT / "projects/DEPLA/configs"
NAMES = sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".py", ".yaml"))
IMAGENET = [name for name in NAMES if "imagenet" in name]
DETECTION = [name for name in NAMES if "rcnn" in name]
BUILDERS = {
    "build_depla_resnet_backbone": 3,
    "build_depla_fpn_backbone": 3,
    "build_depla_resnet_fpn_backbone": 3,
    "build_depla_resnet_depla_fpn_backbone": 6,
    "build_fishnet_backbone": 6,
    "build_fishnet_fpn_backbone": 6,
    "build_fishnet_depla_fpn_backbone": 9,
}


def load(name, *overrides):
    return load_config(str(FOLDER / name), overrides)


def tree(module):
    parameters = {k: (tuple(p.shape), p.requires_grad) for k, p in module.named_parameters()}
    return parameters, {k: tuple(b.shape) for k, b in module.named_buffers()}


def specs(module):
    return [m.spec for m in module.modules() if isinstance(m, DEPLA)]


@pytest.mark.parametrize("name", ["mask_rcnn_r50_depla_fpn_1x", "faster_rcnn_depla_fishnet150_fpn_24e"])
def test_both_kinds_build_the_same_model(name):
    cfg, lazy = load(f"{name}.yaml", "MODEL.DEVICE=meta"), load(f"{name}.py")
    with torch.device("meta"):
        ours, theirs = build_model(cfg), instantiate(lazy.model)
    assert tree(ours) == tree(theirs) and str(ours) == str(theirs)
    assert specs(ours) == specs(theirs) and len(specs(ours)) == (3 if "r50" in name else 6)
    assert cfg.INPUT.FORMAT == lazy.dataloader.train.mapper.image_format == lazy.model.input_format == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == list(lazy.model.pixel_mean) and cfg.MODEL.PIXEL_STD == list(lazy.model.pixel_std)
    assert cfg.MODEL.WEIGHTS == lazy.train.init_checkpoint
    assert cfg.SOLVER.MAX_ITER == lazy.train.max_iter and cfg.SOLVER.BASE_LR == lazy.optimizer.lr
    drops = [round(d * lazy.train.max_iter) for d in lazy.lr_multiplier.drops]
    assert list(cfg.SOLVER.STEPS) == drops and cfg.SOLVER.WARMUP_ITERS == lazy.lr_multiplier.warmup_iters
    assert [cfg.INPUT.MIN_SIZE_TRAIN[0]] == [
        a.short_edge_length for a in lazy.dataloader.train.mapper.augmentations[:1]
    ]


def test_fpn_depla_adds_124416_parameters():
    with torch.device("meta"):
        models = [instantiate(load(f"mask_rcnn_r50_{n}fpn_1x.py").model) for n in ("", "depla_")]
    plain, ours = (sum(p.numel() for p in m.parameters()) for m in models)
    assert ours - plain == 124_416 == 3 * 41_472


def builder_cfg(name, *pairs):
    cfg = get_collection_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = list(FEATURES) if "fishnet" in name else ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list(list(pairs))
    return cfg


def built(name, *pairs):
    with torch.device("meta"):
        return build_backbone(builder_cfg(name, *pairs))


@pytest.mark.parametrize("name", BUILDERS)
def test_builders(name):
    """Number of sites; strides; without DEPLA the plain host."""
    net = built(name)
    assert len(specs(net)) == BUILDERS[name]
    assert [s.stride for s in net.output_shape().values()] == [4, 8, 16, 32, 64][: 5 if "fpn" in name else 4]
    plain = built(name, "MODEL.DEPLA.ENABLED", False, "MODEL.DEPLA_FPN.ENABLED", False)
    ours = [k for k in net.state_dict() if not any(w in k for w in (".depla.", "fpn_depla", ".aggregate."))]
    assert specs(plain) == [] and list(plain.state_dict()) == ours
    assert {s.back_filling for s in specs(net)} == (
        {"plain"}
        if BUILDERS[name] in (3, 6) and "depla_fpn" not in name
        else {"adaptive"}
        if name == "build_depla_fpn_backbone"
        else {"plain", "adaptive"}
    )


def test_defaults_are_the_constructors():
    cfg = get_collection_cfg()
    assert spec_of(cfg.MODEL.DEPLA) == DEPLASpec() and spec_of(cfg.MODEL.DEPLA_FPN) == FPN_SPEC


PAIRS = [
    ("L", 8, "num_groups"),
    ("C_MID", 128, "mid_channels"),
    ("D", 2, "maps_per_group"),
    ("TEMPERATURE", 0.2, "temperature"),
    ("BFN", "adaptive", "back_filling"),
    ("MAP_SCALE", "area", "map_scale"),
    ("KEEP_SUM", True, "keep_sum"),
    ("NORM", "BN", "norm"),
    ("ZERO_INIT", False, "zero_init"),
    ("IMPL", "sdpa", "impl"),
    ("MASK_PADDING", True, "mask_padding"),
]


@pytest.mark.parametrize("key, value, name", PAIRS)
def test_switches_in_both_kinds(key, value, name):
    ours = built("build_depla_resnet_backbone", f"MODEL.DEPLA.{key}", value, "MODEL.BACKBONE.FREEZE_AT", 0)
    override = f"model.backbone.depla.{name}={str(value).lower() if isinstance(value, bool) else value}"
    lazy = load("depla_resnet50_imagenet_100e.py", override).model.backbone
    lazy.update(norm="FrozenBN", out_features=["res2", "res3", "res4", "res5"])
    with torch.device("meta"):
        theirs = instantiate(lazy)
    assert tree(ours) == tree(theirs) and specs(ours) == specs(theirs)
    assert {getattr(s, name) for s in specs(ours)} == {value} and getattr(DEPLASpec(), name) != value


def test_other_keys_of_the_backbones():
    net = built(
        "build_depla_resnet_backbone",
        "MODEL.DEPLA.STAGE",
        "res3",
        "MODEL.DEPLA.BLOCKS",
        [0],
        "MODEL.DEPLA.SE_RATIO",
        16,
    )
    assert [n for n, m in net.named_modules() if isinstance(m, DEPLA)] == ["res3.0.depla"]
    assert hasattr(net.res2[0].se, "reduce")
    fish = built(
        "build_fishnet_backbone",
        "MODEL.FISHNET.DEPTH",
        99,
        "MODEL.FISHNET.WIDTH",
        16,
        "MODEL.FISHNET.TAP",
        "concat",
        "MODEL.FISHNET.OUT_NORM_ACT",
        False,
        "MODEL.FISHNET.OUT_FEATURES",
        ["fish4"],
    )
    assert list(fish.output_shape()) == ["fish4"] and fish.tap == "concat" and not fish.out_norms
    assert fish.output_shape()["fish4"].channels == 400
    for key, value in (("RES5_DILATION", 2), ("DEFORM_ON_PER_STAGE", [False, False, True, True])):
        with pytest.raises(ValueError, match=f"DEPLA-ResNet needs MODEL.RESNETS.{key}"):
            build_backbone(builder_cfg("build_depla_resnet_backbone", f"MODEL.RESNETS.{key}", value))


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes(name):
    """100 epochs or 400 with a cosine, smoothing 0.1; AutoAugment, mixup and 5 epochs of warm-up in the better one."""
    cfg = load(name)
    better = "400e" in name
    assert cfg.train.max_iter == (400 if better else 100) * 5004
    assert cfg.optimizer.lr == 0.2 and cfg.optimizer.weight_decay == 5e-5 and cfg.model.label_smoothing == 0.1
    assert len(cfg.dataloader.train.mapper.transforms) == (3 if better else 2)
    assert (cfg.dataloader.train.collate_fn is not None) == better
    multiplier = instantiate(cfg.lr_multiplier)
    warmup = 5 / 400 if better else 0
    assert multiplier(warmup) == pytest.approx(1, abs=1e-3) and multiplier(0.5) == pytest.approx(0.5, abs=0.02)
    assert multiplier(warmup / 2) == pytest.approx(0.5 if better else 1, abs=1e-3)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert all(p.requires_grad for p in model.parameters())
    wanted = 0 if not name.startswith("depla") else 6 if "fishnet" in name else 3
    assert len(specs(model)) == wanted
    for spec in specs(model):
        assert spec.temperature == 1 and spec.mid_channels == (128 if "wide" in name else 16)
        assert spec.back_filling == ("adaptive" if "adaptive" in name else "plain")
        assert spec.keep_sum == ("_sum_" in name)


def test_detection_recipes():
    """Table 4: 12 epochs of 7330 steps, drops after 8 and 11. Table 5: 24, after 20 and 22; 0.015 with DEPLA."""
    found = 0
    for name in DETECTION:
        if name.endswith(".yaml") or "quick" in name:
            continue
        cfg, fish = load(name), "fishnet" in name
        epochs, drops = (24, [20, 22]) if fish else (12, [8, 11])
        assert cfg.train.max_iter == epochs * 7330
        assert [round(d * epochs, 6) for d in cfg.lr_multiplier.drops] == drops
        assert cfg.optimizer.lr == (0.015 if fish and "depla" in name else 0.02)
        assert cfg.dataloader.train.total_batch_size == 16
        found += 1
    assert found == 13
    temperatures = {
        n: load(f"mask_rcnn_r50_depla_fpn{n}_1x.py").model.backbone.depla.temperature for n in ("", "_t0.2", "_t1.0")
    }
    assert temperatures == {"": 0.5, "_t0.2": 0.2, "_t1.0": 1.0}
    literal = load("mask_rcnn_r50_depla_fpn_literal_1x.py").model.backbone.depla
    assert not literal.keep_sum and literal.map_scale == "none"
