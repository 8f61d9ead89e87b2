"""MuSu's configs: what they change, their sizes, and the same model from both forms."""

import copy
import inspect
from dataclasses import fields

import pytest
import torch

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from projects.MuSu import AlignmentEvaluator, ATSSAssigner, MuSu, MuSuAssigner, QualityFocal, TwoSidedFocal
from projects.MuSu.config import assigner_of, cls_loss_of
from shared.config import get_collection_cfg, load_config
from tests.paths import ROOT
from tests.projects.musu.nets import TwoLevels, make_inputs
from tests.projects.test_configs import DCN_EXTRA, R101_EXTRA

FOLDER = ROOT / "projects/MuSu/configs"
ABLATIONS = sorted(p.stem for p in FOLDER.glob("ablations/*.py"))
FCOS_R50 = 32_244_245  # Detectron2's: the same but for the centerness, one output of 3x3x256 and a bias
R50 = FCOS_R50 - (9 * 256 + 1)


def load(name: str, *overrides):
    return load_config(str(FOLDER / name), overrides)


def build(name: str, *overrides) -> MuSu:
    with torch.device("meta"):
        return instantiate(load(name, *overrides).model)


def tree(model):
    shapes = {k: (tuple(p.shape), p.requires_grad) for k, p in model.named_parameters()}
    return shapes, {k: tuple(b.shape) for k, b in model.named_buffers()}


def knobs(model: MuSu) -> dict:
    """Values that are not tensors."""
    names = set(inspect.signature(MuSu.__init__).parameters) & set(vars(model))
    return {name: value for name, value in vars(model).items() if name in names}


@pytest.mark.parametrize("name", ["musu_r50_fpn_1x", "musu_r50_a9_fpn_1x", "atss_r50_fpn_1x"])
def test_both_forms_build_the_same(name):
    cfg, lazy = load(f"{name}.yaml", "MODEL.DEVICE=meta"), load(f"{name}.py")
    with torch.device("meta"):
        one, two = build_model(cfg), instantiate(lazy.model)
    assert tree(one) == tree(two) and len(tree(one)[0]) > 80
    assert knobs(one) == knobs(two) and {"assigner", "cls_loss", "normalizer", "num_classes"} <= set(knobs(one))
    assert type(one.box2box_transform) is type(two.box2box_transform)
    assert one.box2box_transform.weights == two.box2box_transform.weights == (10, 10, 5, 5)
    assert one.head_in_features == two.head_in_features and str(one) == str(two)
    assert cfg.SOLVER.MAX_ITER == lazy.train.max_iter and cfg.SOLVER.BASE_LR == lazy.optimizer.lr
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(lazy.dataloader.train.mapper.augmentations[0].short_edge_length)
    assert cfg.MODEL.WEIGHTS == lazy.train.init_checkpoint


def test_same_anchors_in_both_forms():
    cfg = load(
        "musu_r50_a9_fpn_1x.yaml", "MODEL.DEVICE=cpu", "MODEL.RESNETS.DEPTH=18", "MODEL.RESNETS.RES2_OUT_CHANNELS=64"
    )
    one, two = build_model(cfg), instantiate(load("musu_r50_a9_fpn_1x.py").model.anchor_generator)
    pairs = list(zip(one.anchor_generator.cell_anchors.buffers(), two.cell_anchors.buffers()))
    assert len(pairs) == 5
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_parameters():
    """Nine anchors add 8 x (80 + 4) outputs of 9 x 256 + 1 parameters."""
    size = {
        name: sum(p.numel() for p in build(f"{name}.py").parameters())
        for name in (
            "musu_r50_fpn_1x",
            "musu_r50_a9_fpn_1x",
            "atss_r50_fpn_1x",
            "fcos_r50_fpn_1x",
            "musu_r101_fpn_2x",
            "musu_r101_dcn_fpn_ms_2x",
        )
    }
    assert size["musu_r50_fpn_1x"] == size["atss_r50_fpn_1x"] == R50 == 32_241_940
    assert size["fcos_r50_fpn_1x"] == FCOS_R50
    assert size["musu_r50_a9_fpn_1x"] == R50 + 8 * 84 * (9 * 256 + 1)
    assert size["musu_r101_fpn_2x"] == R50 + R101_EXTRA
    assert size["musu_r101_dcn_fpn_ms_2x"] == R50 + R101_EXTRA + DCN_EXTRA


def test_schedules_and_sizes():
    for backbone in ("r50", "r101", "r101_dcn"):
        for kind, iterations, shortest in (("1x", 90_000, 800), ("2x", 180_000, 800), ("ms_2x", 180_000, 640)):
            cfg = load(f"musu_{backbone}_fpn_{kind}.py")
            assert cfg.train.max_iter == iterations
            assert min(cfg.dataloader.train.mapper.augmentations[0].short_edge_length) == shortest
            assert ("R-101" if "101" in backbone else "R-50") in cfg.train.init_checkpoint


def test_every_ablation_changes_something_else():
    """Trains a step and detects as well, on two small levels; one of each of A1 to A12 is there."""
    base, seen, batch = load("musu_r50_fpn_1x.py").model, [], make_inputs()
    for name in ABLATIONS:
        model = load(f"ablations/{name}.py").model
        assert model != base and model not in seen, name
        seen.append(copy.deepcopy(model))
        model.update(backbone=L(TwoLevels)(), head_in_features=["p3", "p4"])
        model.head.update(input_shape=[ShapeSpec(channels=32)] * 2, conv_dims=[32])
        model.anchor_generator.strides = [8, 16]
        detector = instantiate(model)
        with EventStorage():
            losses = detector(batch)
        sum(losses.values()).backward()
        assert all(torch.isfinite(x) for x in losses.values()) and losses["loss_musu_reg"] > 0, name
        with torch.no_grad():
            assert len(detector.eval()(batch)) == 2
    assert {int(name.split("_")[0][1:]) for name in ABLATIONS} == set(range(1, 13))


def test_quick_configs():
    model = instantiate(load("quick.py").model)
    assert model.assigner == MuSuAssigner() and model.cls_loss == TwoSidedFocal()
    shares = {"joint": (0.5, 0.5), "pure": (0.0, 0.0), "self": (1.0, 1.0)}
    for name, expected in shares.items():
        rule = instantiate(load(f"quick_{name}.py").model.assigner)
        assert (rule.mix_own_cls, rule.mix_own_reg) == expected
    assert instantiate(load("quick_hard.py").model.assigner).weight_fn == "hard"
    assert instantiate(load("quick_atss.py").model.assigner) == ATSSAssigner()
    for name, shapes in (("quick", 1), ("quick_a2", 2), ("quick_a3", 3)):
        generator = instantiate(load(f"{name}.py").model.anchor_generator)
        assert generator.num_cell_anchors == [shapes] * 5
    size = {
        name: sum(p.numel() for p in instantiate(load(f"{name}.py").model).parameters())
        for name in ("quick", "quick_fcos")
    }
    assert size["quick_fcos"] - size["quick"] == 9 * 64 + 1
    evaluator = load("quick.py").dataloader.evaluator
    assert evaluator._target_ is DatasetEvaluators or evaluator._target_.endswith("DatasetEvaluators")
    assert [x.dataset_name for x in evaluator.evaluators] == ["digits_val"] * 2
    assert {x._target_ for x in evaluator.evaluators} == {COCOEvaluator, AlignmentEvaluator}


def test_defaults_of_keys_are_those_of_constructors():
    node = get_collection_cfg().MODEL.MUSU
    assert assigner_of(node) == MuSuAssigner() and cls_loss_of(node) == TwoSidedFocal()
    names = {
        "test_score_thresh": "SCORE_THRESH_TEST",
        "test_topk_candidates": "TOPK_CANDIDATES_TEST",
        "test_nms_thresh": "NMS_THRESH_TEST",
    }
    checked = 0
    for name, parameter in inspect.signature(MuSu.__init__).parameters.items():
        key = names.get(name, name.upper())
        if key in node and parameter.default is not inspect.Parameter.empty:
            assert node[key] == parameter.default, name
            checked += 1
    assert checked == 9
    lazy = load("musu_r50_fpn_1x.py").model
    assert instantiate(lazy.assigner) == MuSuAssigner() and instantiate(lazy.cls_loss) == TwoSidedFocal()
    assert set(lazy.assigner) - {"_target_"} == {field.name for field in fields(MuSuAssigner)}


def test_keys_of_the_yaml_form():
    """Every key reaches the model."""
    cfg = get_collection_cfg()
    node = cfg.MODEL.MUSU
    node.ASSIGNER, node.ATSS_TOPK = "atss", 4
    assert assigner_of(node) == ATSSAssigner(topk=4)
    node.CLS_LOSS, node.QFL_BETA = "qfl", 1.5
    assert cls_loss_of(node) == QualityFocal(beta=1.5)
    node.CLS_LOSS, node.FOCAL_ALPHA = "focal", 0.4
    assert cls_loss_of(node) == TwoSidedFocal(alpha=0.4)
    node.ASSIGNER, node.MIX_OWN_CLS, node.CONFLICT = "musu", 0.4, "multi"
    assert assigner_of(node) == MuSuAssigner(mix_own_cls=0.4, conflict="multi")
    for key, call in (("ASSIGNER", assigner_of), ("CLS_LOSS", cls_loss_of)):
        node[key] = "other"
        with pytest.raises(ValueError, match=f"MODEL.MUSU.{key} is 'other', choose one of"):
            call(node)
    overrides = (
        "MODEL.DEVICE=meta",
        "MODEL.MUSU.NUM_CONVS=1",
        "MODEL.MUSU.NORM=''",
        "MODEL.MUSU.REG_PARAM=ltrb",
        "MODEL.MUSU.BALANCE_GT=True",
        "MODEL.RETINANET.NUM_CLASSES=7",
        "MODEL.MUSU.ANCHOR_SCALE=6.0",
    )
    with torch.device("meta"):
        model = build_model(load("musu_r50_fpn_1x.yaml", *overrides))
    assert model.num_classes == 7 and model.head.cls_score.out_channels == 7 and model.balance_gt
    assert len(model.head.cls_subnet) == 2 and not hasattr(model.box2box_transform, "weights")
