"""MSFM's configs: both kinds build the same model, plain twins, recipes, ablations."""

from dataclasses import fields

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import instantiate
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from projects.MSFM import MSFM, MSFMBottleneckBlock, MSFMSpec
from projects.MSFM.config import spec_of
from projects.MSFM.count import ABLATIONS, CONFIGS, HOSTS, plain_twin
from shared.config import get_collection_cfg, load_config
from shared.training.run import make_run
from tests.projects.msfm.nets import loaded
from tests.projects.test_steps import make_batch

FINAL = "faster_rcnn_msfm_r50_fpn_1x"
BUILDERS = ["build_msfm_resnet_backbone", "build_msfm_resnet_fpn_backbone", "build_msfm_retinanet_resnet_fpn_backbone"]
ROWS = [name for name in ABLATIONS if name != FINAL]


def load(name, *overrides):
    return load_config(str(CONFIGS / name), overrides)


def tree(module):
    parameters = {k: (tuple(p.shape), p.requires_grad) for k, p in module.named_parameters()}
    return parameters, {k: tuple(b.shape) for k, b in module.named_buffers()}


def specs(module):
    return [m.spec for m in module.modules() if isinstance(m, MSFM)]


@pytest.mark.parametrize("name", [FINAL, "retinanet_msfm_r50_fpn_1x"])
def test_both_kinds_are_the_same_training(name):
    cfg, lazy = load(f"{name}.yaml", "MODEL.DEVICE=meta"), load(f"{name}.py")
    with torch.device("meta"):
        ours, theirs = build_model(cfg), instantiate(lazy.model)
    assert tree(ours) == tree(theirs) and str(ours) == str(theirs)
    assert specs(ours) == specs(theirs) == [MSFMSpec()] * 26
    assert cfg.INPUT.FORMAT == lazy.dataloader.train.mapper.image_format == lazy.model.input_format == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == list(lazy.model.pixel_mean) and cfg.MODEL.PIXEL_STD == list(lazy.model.pixel_std)
    assert cfg.MODEL.WEIGHTS == lazy.train.init_checkpoint == "resnet50-0676ba61.pth"
    assert cfg.SOLVER.MAX_ITER == lazy.train.max_iter == 87_960
    drops = [round(d * lazy.train.max_iter) for d in lazy.lr_multiplier.drops]
    assert list(cfg.SOLVER.STEPS) == drops == [58_640, 80_630]
    assert cfg.SOLVER.WARMUP_ITERS == lazy.lr_multiplier.warmup_iters == 500
    assert cfg.SOLVER.WARMUP_FACTOR == lazy.lr_multiplier.warmup_factor == 0.001
    assert cfg.SOLVER.BASE_LR == lazy.optimizer.lr == (0.01 if "retina" in name else 0.02)
    assert (
        cfg.SOLVER.WEIGHT_DECAY_NORM == lazy.optimizer.params.weight_decay_norm == lazy.optimizer.weight_decay == 1e-4
    )
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [lazy.dataloader.train.mapper.augmentations[0].short_edge_length] == [800]
    assert cfg.SOLVER.IMS_PER_BATCH == lazy.dataloader.train.total_batch_size == 16


def test_both_kinds_start_from_the_same_weights():
    models = []
    for build in (
        lambda: build_backbone(load(f"{FINAL}.yaml")),
        lambda: instantiate(load(f"{FINAL}.py").model.backbone),
    ):
        torch.manual_seed(5)
        models.append(build().state_dict())
    assert list(models[0]) == list(models[1])
    assert [key for key, value in models[0].items() if not torch.equal(value, models[1][key])] == []


CHANGES = {  # every value of MSFMSpec; out_relu alone wants zero_init off, see the test
    "positions": [1, 3],
    "stages": ["res2", "res4", "res5"],
    "ratios": [8, 16, 32],
    "norm_groups": [4, 8, 16],
    "scales": [0.5, 2.0],
    "conv_num": 1,
    "conv_num_small": 1,
    "fusion": "cat",
    "align_corners": True,
    "squeeze_bias": False,
    "squeeze_norm": False,
    "zero_init": False,
    "out_relu": True,
    "impl": "plain",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_value_in_both_kinds(name):
    values = {name: CHANGES[name], **({"zero_init": False} if name == "out_relu" else {})}
    cfg = load(f"{FINAL}.yaml", *(f"MODEL.MSFM.{k.upper()}={v!r}" for k, v in values.items()))
    prefix = "model.backbone.bottom_up.stages.msfm"
    lazy = load(f"{FINAL}.py", *(f"{prefix}.{k}={v}".replace("'", "") for k, v in values.items()))
    ours, theirs = spec_of(cfg), instantiate(lazy.model.backbone.bottom_up.stages.msfm)
    assert ours == theirs == MSFMSpec(**values) != MSFMSpec()
    assert set(CHANGES) == {f.name for f in fields(ours)} and getattr(ours, name) != getattr(MSFMSpec(), name)


def test_defaults_are_the_constructors():
    """Of the keys, of MSFMSpec and of the config that all others come from."""
    stages = load(f"{FINAL}.py").model.backbone.bottom_up.stages
    assert spec_of(get_collection_cfg()) == MSFMSpec() == instantiate(stages.msfm)
    assert set(stages.msfm) - {"_target_"} == {f.name for f in fields(MSFMSpec)}


@pytest.mark.parametrize("name", BUILDERS)
def test_builders(name):
    """Strides; widths and deformable stages are MODEL.RESNETS'; not ENABLED it is the plain backbone."""
    cfg = get_collection_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, True, False]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 512, 128
    with torch.device("meta"):
        ours = build_backbone(cfg)
        cfg.MODEL.MSFM.ENABLED = False
        plain = build_backbone(cfg)
    assert len(specs(ours)) == 26 and specs(plain) == []
    assert [k for k in ours.state_dict() if ".msfm" not in k] == list(plain.state_dict())
    assert ours.output_shape() == plain.output_shape()
    lengths = {BUILDERS[0]: 3, BUILDERS[1]: 4, BUILDERS[2]: 5}
    assert [s.stride for s in ours.output_shape().values()] == [8, 16, 32, 64, 128][: lengths[name]]
    bottom_up = getattr(ours, "bottom_up", ours)
    assert bottom_up.res4[0].conv2_offset.out_channels == 18 and bottom_up.res3[0].out_channels == 1024
    assert bottom_up.res3[0].msfm2.squeeze.out_channels == 16 and not hasattr(bottom_up.res3[0], "conv2_offset")


def test_builder_refuses():
    cfg = load(f"{FINAL}.yaml", "MODEL.RESNETS.RES5_DILATION=2")
    with pytest.raises(ValueError, match="MSFM-ResNet needs MODEL.RESNETS.RES5_DILATION 1, got 2"):
        build_backbone(cfg)


def without_stages(cfg):
    plain = OmegaConf.to_container(cfg, resolve=False)
    return plain, plain["model"]["backbone"]["bottom_up"].pop("stages")


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_differ_from_their_plain_twins_in_the_stages_alone(name):
    ours, stages = without_stages(loaded(name))
    twin, plain_stages = without_stages(loaded(plain_twin(name)))
    assert ours == twin and ours["model"]["backbone"]["bottom_up"]["freeze_at"] == 2
    assert ours["train"]["init_checkpoint"].startswith("resnet101-" if "r101" in name else "resnet50-")
    for key in plain_stages.keys() - {"_target_"}:
        assert stages[key] == plain_stages[key]
    assert stages["depth"] == (101 if "r101" in name else 50) and not stages["stride_in_1x1"]
    assert stages["deform_on_per_stage"] == [False, *["dcn" in name] * 3]
    assert ours["optimizer"]["lr"] == (0.01 if "retinanet" in name or "reppoints" in name else 0.02)
    assert ours["train"]["max_iter"] == (24 if "2x" in name else 12) * 7330


def test_large_model_is_trained_at_many_scales():
    cfg = load("cascade_rcnn_msfm_r101_fpn_2x_ms.py")
    resize, _ = cfg.dataloader.train.mapper.augmentations
    assert list(resize.short_edge_length) == [640, 800] and resize.sample_style == "range"
    assert [d * 24 for d in cfg.lr_multiplier.drops] == pytest.approx([16, 22])
    assert cfg.dataloader.test.mapper.augmentations[0].short_edge_length == 800


def test_there_is_a_config_for_every_row():
    assert sorted(p.stem for p in (CONFIGS / "ablations").glob("*.py")) == sorted(n.split("/")[1] for n in ROWS)
    assert len(ROWS) == 30


# what a name says of its setting, beside the default's
WORDS = {
    "5s": {"scales": (0.5, 0.6, 0.7, 0.85, 1.0)},
    "3l": {"scales": (1.0, 1.4, 2.0)},
    "4": {"scales": (0.5, 0.7, 1.4, 2.0)},
    "5": {"scales": (0.5, 0.7, 1.0, 1.4, 2.0)},
    "3s": {},
}


def setting(name):
    """The `MSFMSpec` that the name of a row stands for."""
    default = {"positions": (3,), "scales": (0.5, 0.7, 1.0), "norm_groups": (8, 4, 16), "conv_num": 1}
    kind, _, rest = name.removeprefix("pos1_").removeprefix("pos2_").partition("_")
    if kind == "positions":
        return MSFMSpec(positions=tuple(map(int, rest.split("_"))))
    position = {"pos1": 1, "pos2": 2}.get(name[:4], 3)
    values = {**default, "positions": (position,)}
    if kind == "ratios":
        values["ratios"] = tuple(map(int, rest.split("_")))
    elif kind == "groups":
        values["norm_groups"] = tuple(int(rest) if p == position else g for p, g in zip((1, 2, 3), (8, 4, 16)))
    elif kind in ("scales", "convs"):
        number, _, scales = rest.rpartition("_")
        values |= WORDS[scales]
        if kind == "convs":
            values |= {"norm_groups": (8, 4, 32), "conv_num": 2, "conv_num_small": int("star" in number)}
    elif kind == "cat":
        values["fusion"] = "cat"
    return MSFMSpec(**values)


@pytest.mark.parametrize("name", ROWS)
def test_ablations_change_the_modules_alone(name):
    cfg = loaded(name)
    assert make_run(cfg).max_iter == 87_960
    (ours, stages), (final, final_stages) = without_stages(cfg), without_stages(loaded(FINAL))
    assert ours == final and {**stages, "msfm": None} == {**final_stages, "msfm": None}
    assert instantiate(cfg.model.backbone.bottom_up.stages.msfm) == setting(name.split("/")[1])


@pytest.mark.parametrize("name", ["faster_rcnn_msfm_quick", "retinanet_msfm_quick"])
def test_quick_configs(name):
    """Modules at positions 2 and 3 of three blocks, as thin as the paper's; else the plain twin."""
    cfg = load(f"{name}.py", "model.backbone.bottom_up.stages.1.msfm.impl=plain")  # that of all three stages
    model = instantiate(cfg.model)
    assert len(specs(model)) == 6 and set(specs(model)) == {MSFMSpec(ratios=(4, 8, 16), impl="plain")}
    blocks = [m for m in model.modules() if isinstance(m, MSFMBottleneckBlock)]
    assert [b.msfm2.squeeze.out_channels for b in blocks] == [8] * 3
    assert [b.msfm3.squeeze.out_channels for b in blocks] == [32] * 3
    twin = load("retinanet_quick.py") if "retina" in name else load("../../../configs/quickstart_bottleneck.py")
    (ours, _), (plain, _) = without_stages(cfg), without_stages(twin)
    ours["train"].pop("output_dir"), plain["train"].pop("output_dir")
    assert ours == plain
    names = [k for k, _ in model.named_parameters() if ".msfm" not in k]
    assert names == [k for k, _ in instantiate(twin.model).named_parameters()]


@pytest.mark.parametrize(
    "name", [name if name == "ablations/convs_2star_5" else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
def test_ablations_train_a_step_and_detect(name):
    """At a quarter of the backbone's width with ratios to match."""
    cfg = load(f"{name}.py")
    stages, heads = cfg.model.backbone.bottom_up.stages, cfg.model.roi_heads
    stages.update(res2_channels=64, width_per_group=16)
    stages.msfm.ratios = [r // 4 for r in stages.msfm.ratios]
    heads.batch_size_per_image, cfg.model.proposal_generator.post_nms_topk = 16, (100, 16)
    torch.manual_seed(0)
    model, batch = instantiate(cfg.model), make_batch(heads.num_classes, masks=False)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval()
    with torch.no_grad():
        outputs = model([{"image": x["image"], "height": 50, "width": 70} for x in batch])
    assert [output["instances"].image_size for output in outputs] == [(50, 70)] * 2
