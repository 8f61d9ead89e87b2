"""The zoo's model trees: order of construction, values, sizes and first weights."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver import get_default_optimizer_params

DETECTION, MASKS = "COCO-Detection/", "COCO-InstanceSegmentation/"


def target(node):
    """Name of what a lazy call calls."""
    name = node["_target_"]
    return (name if isinstance(name, str) else name.__qualname__).rpartition(".")[2]


def test_order_of_construction():
    """Order of keys is order of construction, hence of random numbers."""
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    assert list(model) == [
        "backbone", "proposal_generator", "roi_heads", "pixel_mean", "pixel_std", "input_format",
        "_target_",
    ]  # fmt: skip
    assert list(model.backbone)[:3] == ["bottom_up", "in_features", "out_channels"]
    assert [k for k in model.roi_heads if "head" in k or "predictor" in k] == ["box_head", "box_predictor", "mask_head"]
    cascade = model_zoo.get_config("common/models/cascade_rcnn.py").model
    assert target(cascade.roi_heads) == "CascadeROIHeads"
    assert [k for k in cascade.roi_heads if "head" in k or "predictor" in k] == [
        "mask_head",
        "box_heads",
        "box_predictors",
    ]
    assert "proposal_matcher" not in cascade.roi_heads
    assert [m.thresholds[0] for m in cascade.roi_heads.proposal_matchers] == [0.5, 0.6, 0.7]
    assert [p.box2box_transform.weights[0] for p in cascade.roi_heads.box_predictors] == [
        10, 20, 30,
    ]  # fmt: skip
    assert all(p.num_classes == 80 for p in cascade.roi_heads.box_predictors)


def test_fcos_differs_from_retinanet_by_this():
    retinanet = model_zoo.get_config("common/models/retinanet.py").model
    fcos = model_zoo.get_config("common/models/fcos.py").model
    assert target(retinanet) == "RetinaNet" and target(fcos) == "FCOS"
    gone = {"anchor_generator", "box2box_transform", "anchor_matcher", "input_format"}
    assert set(retinanet) - set(fcos) == gone
    assert set(fcos) - set(retinanet) == {"test_score_thresh", "test_nms_thresh"}
    assert (fcos.test_score_thresh, fcos.test_nms_thresh) == (0.2, 0.6)
    assert (target(fcos.head), fcos.head.norm) == ("FCOSHead", "GN")
    assert "num_anchors" not in fcos.head and retinanet.head.num_anchors == 9
    block = fcos.backbone.top_block
    assert (block.in_feature, block.in_channels, block.out_channels) == ("p5", 256, 256)
    assert retinanet.backbone.top_block.in_channels == 2048


def test_common_values():
    get = model_zoo.get_config
    constants = get("common/data/constants.py").constants
    assert OmegaConf.to_container(constants) == {
        "imagenet_rgb256_mean": [123.675, 116.28, 103.53],
        "imagenet_rgb256_std": [58.395, 57.12, 57.375],
        "imagenet_bgr256_mean": [103.53, 116.28, 123.675],
        "imagenet_bgr256_std": [1.0, 1.0, 1.0],
    }
    assert OmegaConf.to_container(get("common/train.py").train) == {
        "output_dir": "./output",
        "init_checkpoint": "",
        "max_iter": 90000,
        "amp": {"enabled": False},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": 5000, "max_to_keep": 100},
        "eval_period": 5000,
        "log_period": 20,
        "device": "cuda",
    }
    optim = get("common/optim.py")
    assert (optim.SGD.lr, optim.SGD.momentum, optim.SGD.weight_decay) == (0.02, 0.9, 1e-4)
    adam = optim.AdamW
    assert (adam.lr, adam.params.base_lr, adam.weight_decay) == (1e-4, 1e-4, 0.1)
    assert tuple(adam.betas) == (0.9, 0.999) and adam.params.weight_decay_norm == 0.0
    loader = get("common/data/coco.py").dataloader
    assert loader.train.total_batch_size == 16 and loader.train.mapper.use_instance_mask
    assert loader.test.mapper.image_format == "BGR"
    assert loader.evaluator.dataset_name == "coco_2017_val"
    assert loader.test.dataset.filter_empty is False


@pytest.mark.parametrize(
    "num, drops, warmup", [(1, (2 / 3, 8 / 9), 1 / 90), (2, (2 / 3, 8 / 9), 1 / 180), (3, (21 / 27, 25 / 27), 1 / 270)]
)
def test_coco_schedules(num, drops, warmup):
    multiplier = instantiate(model_zoo.get_config("common/coco_schedule.py")[f"lr_multiplier_{num}x"])
    assert multiplier(0) == 0.001
    assert multiplier(warmup / 2) == pytest.approx(0.5005)  # half way from 0.001 to 1
    values = [multiplier(w + d) for w in drops for d in (-1e-4, 1e-4)]
    assert values == [1.0, 0.1, 0.1, 0.01]


@pytest.mark.parametrize(
    "name, dense",
    [
        (MASKS + "mask_rcnn_R_50_FPN_1x.py", False),
        (DETECTION + "retinanet_R_50_FPN_1x.py", True),
        (DETECTION + "fcos_R_50_FPN_1x.py", True),
    ],
)
def test_python_examples(name, dense):
    cfg = model_zoo.get_config(name)
    assert {"optimizer", "lr_multiplier", "dataloader", "model", "train"} <= set(cfg)
    assert cfg.model.backbone.bottom_up.freeze_at == 2
    assert cfg.dataloader.train.mapper.use_instance_mask is not dense
    assert cfg.optimizer.lr == (0.01 if dense else 0.02)


def test_building_blocks_are_fresh_at_every_import(tmp_path):
    """A config beside them imports them relatively; what it changes stays in it."""
    folder = Path(model_zoo.get_config_file("common/train.py")).parents[1]
    dots = "." * (len(tmp_path.parts) + 1)  # up to the root of the file system
    module = ".".join((*folder.parts[1:], "common", "train"))
    if not re.fullmatch(r"[\w.]+", module):
        pytest.skip("the package lies below a folder whose name Python cannot import")
    (tmp_path / "a.py").write_text(f"from {dots[:-1]}{module} import train\ntrain.max_iter = 1\n")
    assert LazyConfig.load(str(tmp_path / "a.py")).train.max_iter == 1
    assert model_zoo.get_config("common/train.py").train.max_iter == 90000


def test_get_builds_the_model_and_loads_its_weights(monkeypatch):
    loaded = []
    monkeypatch.setattr(DetectionCheckpointer, "load", lambda self, path: loaded.append(path))
    model = model_zoo.get(DETECTION + "rpn_R_50_FPN_1x.yaml", trained=True, device="cpu")
    assert type(model).__name__ == "ProposalNetwork" and model.device.type == "cpu"
    assert loaded == [model_zoo.get_checkpoint_url(DETECTION + "rpn_R_50_FPN_1x")]


# ---------------------------------------------------------------- the models themselves
def build(name):
    torch.manual_seed(7)
    cfg = model_zoo.get_config(name)
    if name.endswith(".py"):
        return instantiate(cfg.model)
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


BACKBONE, RPN, ROI = "backbone.", "proposal_generator.rpn_head.", "roi_heads."
MODELS = {  # parameters, state entries, those of the backbone, first weights after seed 7
    "common/models/mask_rcnn_fpn.py": (
        44_343_216, 307, 26_799_296,
        {
            BACKBONE + "bottom_up.res5.2.conv3": -0.00590, BACKBONE + "fpn_output5": -0.02520,
            RPN + "conv": 0.00788, ROI + "box_head.fc2": -0.00795,
            ROI + "mask_head.predictor": 0.00058,
        },
    ),
    "common/models/cascade_rcnn.py": (
        71_984_926, 323, 26_799_296,
        {
            ROI + "mask_head.predictor": -0.00066, ROI + "box_head.2.fc2": 0.01492,
            ROI + "box_predictor.2.bbox_pred": 0.00002,
        },
    ),
    "common/models/retinanet.py": (
        37_915_572, 301, 31_452_352,
        {
            BACKBONE + "top_block.p7": -0.00967, BACKBONE + "fpn_output5": -0.00442,
            "head.bbox_pred": 0.01378,
        },
    ),
    "common/models/fcos.py": (
        32_244_245, 319, 27_323_584,
        {BACKBONE + "top_block.p7": 0.03549, "head.ctrness": -0.01788},
    ),
    DETECTION + "faster_rcnn_R_50_FPN_1x.yaml": (
        41_699_936, 295, 26_799_296,
        {
            BACKBONE + "bottom_up.res5.2.conv3": -0.00590, BACKBONE + "fpn_output5": -0.02520,
            RPN + "anchor_deltas": 0.00079,
        },
    ),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml": (
        71_984_926, 323, 26_799_296,
        {
            ROI + "box_head.2.fc2": 0.03018, ROI + "box_predictor.2.bbox_pred": 0.00005,
            ROI + "mask_head.predictor": 0.00217,
        },
    ),
    DETECTION + "retinanet_R_50_FPN_1x.yaml": (
        37_915_572, 301, 31_452_352,
        {
            BACKBONE + "top_block.p7": -0.00967, BACKBONE + "fpn_output5": -0.00442,
            "head.bbox_pred": 0.01378,
        },
    ),
}  # fmt: skip


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sizes_and_seeds(name):
    parameters, entries, of_backbone, weights = MODELS[name]
    model = build(name)
    state = model.state_dict()
    assert (count(model), len(state), count(model.backbone)) == (parameters, entries, of_backbone)
    first = {k: round(state[k + ".weight"].flatten()[0].item(), 5) for k in weights}
    assert first == weights


@pytest.mark.slow
def test_parameter_groups_of_fcos():
    groups = get_default_optimizer_params(
        build(DETECTION + "fcos_R_50_FPN_1x.py"), weight_decay_norm=0.0
    )  # 8 group norms of the head: 16 parameters
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(80, None), (16, 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name, giga", [("retinanet_R_50_FPN_1x.yaml", 146), ("faster_rcnn_R_50_FPN_1x.yaml", 117)])
def test_work_of_the_convolutions(name, giga):
    from detectron2.utils.analysis import flop_count_operators

    flops = flop_count_operators(build(DETECTION + name), [{"image": torch.rand(3, 800, 800)}])
    assert round(flops["conv"]) == giga
