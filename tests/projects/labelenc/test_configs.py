"""LabelEnc's configs: schedules by numbers, what a step changes of its baseline, where it starts from, both forms."""

import copy
import functools
import logging
import re
from pathlib import PurePosixPath

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from projects.LabelEnc import LabelEncMixin, initialize
from projects.LabelEnc.export import ENCODER, below, describe, head_of
from shared.config import apply_overrides, load_config
from shared.solver import iterations
from shared.training.run import make_run
from tests.paths import ROOT

FOLDER = ROOT / "projects/LabelEnc/configs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
STEP2 = [n for n in NAMES if "_step2" in n and "quick" not in n]
BASELINES = [n for n in NAMES if n.endswith(("_fpn_1x", "_fpn_2x"))]


@functools.cache
def read(name):
    return load_config(str(FOLDER / (name if "." in name else f"{name}.py")))


def load(name, *overrides):
    if overrides:
        return apply_overrides(load(name), overrides)
    return copy.deepcopy(read(name))


def on_meta(cfg):
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


def milestones(cfg):
    """The iterations at which the learning rate is divided by 10, found by asking the schedule."""
    length, schedule = cfg.train.max_iter, instantiate(cfg.lr_multiplier)
    drops = [round(d * length) for d in cfg.lr_multiplier.drops]
    for drop in drops:
        assert schedule(drop / length) == pytest.approx(schedule((drop - 1) / length) / 10)
    assert schedule(0.999) == pytest.approx(0.1 ** len(drops))
    return drops


# ---------------------------------------------------------------- schedules
SCHEDULES = {  # (iterations, drops, without the distance at first, last iteration with it)
    **{
        f"{h}_step1_r50": (120_000, [90_000, 110_000], 30_000)
        for h in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn")
    },
    "retinanet_step1_r101": (120_000, [90_000, 110_000], 30_000),
    "retinanet_step1_r50_original": (120_000, [80_000, 105_000], 40_000),
    **{name: (90_000, [60_000, 80_000], 80_000) for name in STEP2},
    **{n: (90_000, [60_000, 80_000], 80_000) for n in NAMES if "_kd_" in n},
    # "1x" is 360: 120k : 30k and 90k : 80k
    **{f"{h}_quick_step1": (480, [360, 440], 120) for h in ("retinanet", "faster_rcnn")},
    **{f"{h}_quick_step2": (360, [240, 320], 320) for h in ("retinanet", "faster_rcnn")},
    "retinanet_quick_kd": (360, [240, 320], 320),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    cfg = load(name)
    length, drops, phase = SCHEDULES[name]
    assert (cfg.train.max_iter, milestones(cfg)) == (length, drops)
    node = cfg.model.label_enc
    assert node.mode == ("step1" if "step1" in name else "kd" if "kd" in name else "step2")
    assert instantiate(node.warmup_iters if node.mode == "step1" else node.aux_loss_iters) == phase


def test_schedules_of_baselines_and_of_reconstruction_alone():
    assert len(BASELINES) == 3 * 6 + 4 + 1
    for name in BASELINES:
        cfg = load(name)
        once = name.endswith("1x")
        assert cfg.train.max_iter == (90_000 if once else 180_000)
        assert milestones(cfg) == ([60_000, 80_000] if once else [120_000, 160_000])
    cfg = load("retinanet_step1_rec_only")
    assert (cfg.train.max_iter, milestones(cfg)) == (90_000, [60_000, 80_000])
    assert cfg.model.label_enc.weight_det == cfg.model.label_enc.weight_dis == 0
    assert [load(f"retinanet_quick_{n}").train.max_iter for n in ("1x", "2x", "rec_only")] == [360, 720, 360]


def test_phases_follow_the_length_of_the_run():
    cfg = load("retinanet_step1_r50", "train.max_iter=8")
    assert instantiate(cfg.model.label_enc.warmup_iters) == 2
    cfg = load("retinanet_step2_r50", "train.max_iter=18", "model.label_enc.warmup_iters=5")
    assert instantiate(cfg.model.label_enc.aux_loss_iters) == 16
    assert cfg.model.label_enc.warmup_iters == 5
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        iterations(10, 1.5)


# ---------------------------------------------------------------- models
RETINANET, FCOS, FASTER = 17_907_712, 13_778_944, 13_254_656  # encoder with its FPN
ADAPT = 3 * (9 * 256 * 256 + 256)
DCN = sum(blocks * (9 * width + 1) * 27 for blocks, width in ((4, 128), (23, 256), (3, 512)))
SIZES = {
    "retinanet_r50_fpn_1x": 37_915_572,
    "retinanet_r101_fpn_2x": 56_855_476,
    "fcos_r50_fpn_1x": 32_244_245,
    "faster_rcnn_r101_fpn_1x": 60_639_840,
    "mask_rcnn_r50_fpn_2x": 44_343_216,
    # MobileNetV2 without its norms' scales and biases (frozen: buffers), laterals, outputs, P6 and P7, RetinaNet's head
    "retinanet_mobilenetv2_fpn_1x": (1_811_712 - 2 * 15_776)
    + (32 + 96 + 320 + 3) * 256
    + 3 * (2304 * 256 + 256)
    + (9 * 320 * 256 + 256)
    + (2304 * 256 + 256)
    + 6_463_220,
    "retinanet_step1_r50": 37_915_572 + RETINANET + ADAPT,
    "retinanet_step1_rec_only": 37_915_572 + RETINANET,
    "retinanet_step2_r101": 56_855_476 + RETINANET + ADAPT,
    "retinanet_step2_r50_init_only": 37_915_572,
    "retinanet_kd_r50_from_r101": 37_915_572 + ADAPT,
    "fcos_step2_r50": 32_244_245 + FCOS + ADAPT,
    "faster_rcnn_step1_r50": 41_699_936 + FASTER + ADAPT,
    "mask_rcnn_step2_r50": 44_343_216 + FASTER + ADAPT,
    # modulated deformable convolutions in all 30 blocks of res3 to res5, each with an offset branch of 27 channels
    "retinanet_step2_r101_dcn": 56_855_476 + DCN + RETINANET + ADAPT,
    "fcos_step2_r101_dcn": 51_184_149 + DCN + FCOS + ADAPT,
    "faster_rcnn_step2_r101_dcn": 60_639_840 + DCN + FASTER + ADAPT,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    assert sum(p.numel() for p in on_meta(load(name)).parameters()) == SIZES[name]


def plain(node):
    return OmegaConf.to_container(node, resolve=False)


@pytest.mark.parametrize("name", [n for n in NAMES if "_step" in n or "_kd" in n])
def test_a_step_is_its_baseline_and_label_enc(name):
    """Model, data and optimizer are the plain host's; so is step 2's schedule."""
    ours = load(name)
    if "quick" in name:
        base = name.partition("_quick")[0] + "_quick_1x"
    else:
        host, _, rest = re.sub(r"_(step[12]|kd)_", "|", name).partition("|")
        backbone = re.match(r"r101_dcn|r101|r50|mobilenetv2|rec", rest)[0].replace("rec", "r50")
        base = f"{host}_{backbone}_fpn_1x"
    theirs = load(base)
    model = plain(ours.model)
    assert model.pop("label_enc") and "LabelEnc" in str(model.pop("_target_"))
    assert model == {k: v for k, v in plain(theirs.model).items() if k != "_target_"}
    data = plain(ours.dataloader)
    if "mask_rcnn" in name:
        assert "LabelMaskMapper" in str(data["train"]["mapper"]["_target_"])
        data["train"]["mapper"]["_target_"] = theirs.dataloader.train.mapper._target_
    assert data == plain(theirs.dataloader)
    assert plain(ours.optimizer) == plain(theirs.optimizer)
    assert ours.train.init_checkpoint == theirs.train.init_checkpoint
    if "step1" not in name:
        assert plain(ours.lr_multiplier) == plain(theirs.lr_multiplier)
        assert ours.train.max_iter == theirs.train.max_iter
    assert ours.model.label_enc.source == ("mask" if "mask_rcnn" in name else "box")


@pytest.mark.parametrize("name", NAMES)
def test_runs_lie_apart_and_weights_come_from_runs_of_the_folder(name):
    cfg = load(name)
    assert cfg.train.output_dir == f"./output/labelenc/{name}"
    node = cfg.model.get("label_enc")
    if node is None or node.mode == "step1":
        return
    files = [node.step1_weights] if node.mode == "step2" else [node.teacher_config, node.teacher_weights]
    names = ["label_encoder.pth"] if node.mode == "step2" else ["config.yaml", "model_final.pth"]
    assert [PurePosixPath(f).name for f in files] == names
    source = load(PurePosixPath(files[0]).parent.name)
    assert f"./{PurePosixPath(files[-1]).parent}" == source.train.output_dir
    assert source.model.get("label_enc", {}).get("mode") == ("step1" if node.mode == "step2" else None)


def test_table_5_switches():
    for base in ("retinanet_step2_r50", "retinanet_step2_r50_rec_only"):
        nodes = {kind: load(base + kind).model.label_enc for kind in ("", "_sup_only", "_init_only")}
        assert len({node.step1_weights for node in nodes.values()}) == 1
        keys = ("init_head", "init_fpn", "weight_dis")
        assert [tuple(node[k] for k in keys) for node in nodes.values()] == [
            (True, "encoder", 1.0),
            (False, "none", 1.0),
            (True, "encoder", 0.0),
        ]


def test_mobilenet_takes_the_encoder_of_r50s_step_1_and_most_of_its_fpn(monkeypatch, caplog):
    """All of the encoder and the head, else it would raise; laterals and P6 read other widths there."""
    first, second = on_meta(load("retinanet_step1_r50")), on_meta(load("retinanet_step2_mobilenetv2"))
    state = first.state_dict()
    step1 = {"encoder": below(state, ENCODER), "head": head_of(state), "meta": describe(first)}
    monkeypatch.setattr(initialize, "read_step1", lambda path: step1)
    with caplog.at_level(logging.INFO):
        initialize.start_from_step1(second, frozenset())
    (left_out,) = re.findall(r"of the FPN, (.*) fit no entry", caplog.text)
    laterals = [f"backbone.fpn_lateral{i}.weight" for i in (3, 4, 5)]
    assert left_out.split(", ") == [*laterals, "backbone.top_block.p6.weight"]
    # 3 laterals and outputs, P6 and P7: 16 entries, 4 of them left out
    count = len(step1["encoder"]) + len(step1["head"]) + 16 - 4
    assert f"{count} of the model's" in caplog.text and len(step1["encoder"]) > 50


def test_the_papers_recipe():
    """One scale, biases at twice the rate without decay, 500 iterations of warm-up from a third."""
    cfg = load("retinanet_r50_fpn_1x")
    assert list(cfg.dataloader.train.mapper.augmentations[0].short_edge_length) == [800]
    assert cfg.dataloader.train.total_batch_size == 16
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0) == pytest.approx(1 / 3) and schedule(500 / 90_000) == pytest.approx(1)
    for name, rate in (("retinanet", 0.01), ("fcos", 0.01), ("faster_rcnn", 0.02), ("mask_rcnn", 0.02)):
        cfg = load(f"{name}_r50_fpn_1x")
        model = on_meta(cfg)
        groups = make_run(cfg).build_optimizer(model).param_groups
        found = {
            "bias" if p is model.backbone.fpn_output5.bias else "weight": (group["lr"], group["weight_decay"])
            for group in groups
            for p in group["params"]
            if p is model.backbone.fpn_output5.bias or p is model.backbone.fpn_output5.weight
        }
        assert found == {"bias": (2 * rate, 0.0), "weight": (rate, 1e-4)}
    assert load("fcos_r50_fpn_1x").model.center_sampling_radius == float("inf")
    for name in ("retinanet", "fcos", "faster_rcnn"):
        assert load(f"{name}_step2_r101_dcn").model.backbone.bottom_up.stages.deform_modulated is True


# ---------------------------------------------------------------- YAML
@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_both_kinds_are_the_same(name):
    cfg, lazy = load(f"{name}.yaml"), load(name)
    ours, theirs = on_meta(cfg), on_meta(lazy)
    assert isinstance(ours, LabelEncMixin) and type(ours) is type(theirs)

    def tree(model):
        return {k: (p.shape, p.requires_grad) for k, p in model.named_parameters()}, set(model.state_dict())

    assert tree(ours) == tree(theirs) and str(ours) == str(theirs)
    options = [
        {
            k: v
            for k, v in vars(m.label_enc).items()
            if not k.startswith("_") and k not in ("teacher", "aux_loss_iters", "warmup_iters")
        }
        for m in (ours, theirs)
    ]
    assert options[0] == options[1]
    phase = "warmup_iters" if ours.label_enc.mode == "step1" else "aux_loss_iters"
    assert getattr(ours.label_enc, phase) == getattr(theirs.label_enc, phase)
    solver, train = cfg.SOLVER, lazy.train
    assert (solver.MAX_ITER, list(solver.STEPS)) == (train.max_iter, milestones(lazy))
    assert (solver.BASE_LR, solver.IMS_PER_BATCH) == (lazy.optimizer.lr, lazy.dataloader.train.total_batch_size)
    assert (
        (solver.WARMUP_ITERS, solver.WARMUP_FACTOR)
        == (500, 1 / 3)
        == (lazy.lr_multiplier.warmup_iters, lazy.lr_multiplier.warmup_factor)
    )
    params = lazy.optimizer.params
    assert (solver.BIAS_LR_FACTOR, solver.WEIGHT_DECAY_BIAS) == (params.bias_lr_factor, params.weight_decay_bias)
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [800] and cfg.MODEL.WEIGHTS == train.init_checkpoint
    assert cfg.OUTPUT_DIR == train.output_dir
    if name.startswith("faster"):
        losses = [
            (m.proposal_generator.smooth_l1_beta, m.roi_heads.box_predictor.smooth_l1_beta) for m in (ours, theirs)
        ]
        assert losses == [(1 / 9, 1.0)] * 2


def test_readme_names_every_config_and_no_other():
    text = (ROOT / "projects/LabelEnc/README.md").read_text()
    linked = set(re.findall(r"\(configs/(\w+\.(?:py|yaml))\)", text))
    assert linked == {p.name for p in FOLDER.iterdir() if p.is_file()}
