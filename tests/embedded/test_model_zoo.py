"""The zoo's configs, addresses and model trees."""

from pathlib import Path

import pytest
import torch

from detectron2 import model_zoo
from detectron2.config import get_cfg

DETECTION, MASKS = "COCO-Detection/", "COCO-InstanceSegmentation/"
R50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
R101 = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
X101 = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
GN = "catalog://ImageNetPretrained/FAIR/R-50-GN"
WEIGHTS = {  # training starts from, and the trained ones
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": (R50, "137257794/model_final_b275ba"),
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": (R50, "137849458/model_final_280758"),
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": (R101, "137851257/model_final_f6e8b1"),
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": (X101, "139173657/model_final_68b088"),
    "COCO-Detection/retinanet_R_50_FPN_1x": (R50, "190397773/model_final_bfca0b"),
    "COCO-Detection/retinanet_R_50_FPN_3x": (R50, "190397829/model_final_5bd44e"),
    "COCO-Detection/retinanet_R_101_FPN_3x": (R101, "190397697/model_final_971ab9"),
    "COCO-Detection/rpn_R_50_FPN_1x": (R50, "137258492/model_final_02ce48"),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (R50, "137260431/model_final_a54504"),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": (R50, "137849600/model_final_f10217"),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": (R101, "138205316/model_final_a3ec72"),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": (X101, "139653917/model_final_2d9806"),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": (R50, "138602847/model_final_e9d89b"),
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": (R50, "144998488/model_final_480dd8"),
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": (R50, "138602867/model_final_65c703"),
    "Misc/mask_rcnn_R_50_FPN_3x_gn": (GN, "138602888/model_final_dc5d9e"),
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": (R50, "169527823/model_final_3b3c51"),
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": ("", "138602908/model_final_01ca85"),
}


# ---------------------------------------------------------------- names and addresses
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    start, trained = WEIGHTS[name]
    url = f"https://dl.fbaipublicfiles.com/detectron2/{name}/{trained}.pkl"
    assert model_zoo.get_checkpoint_url(name + ".yaml") == url
    assert model_zoo.get_config(name + ".yaml").MODEL.WEIGHTS == start
    assert model_zoo.get_config(name + ".yaml", trained=True).MODEL.WEIGHTS == url


@pytest.mark.parametrize("name", [MASKS + "mask_rcnn_R_50_FPN_1x", DETECTION + "fcos_R_50_FPN_1x"])
def test_weights_of_python_configs(name):
    assert model_zoo.get_config(name + ".py").train.init_checkpoint == R50
    if name in WEIGHTS:
        url = model_zoo.get_checkpoint_url(name + ".yaml")
        assert model_zoo.get_config(name + ".py", trained=True).train.init_checkpoint == url
    else:
        with pytest.raises(RuntimeError, match="fcos_R_50_FPN_1x"):
            model_zoo.get_config(name + ".py", trained=True)


def test_missing_configs_are_refused_by_name():
    with pytest.raises(RuntimeError, match="COCO-Detection/none.yaml"):
        model_zoo.get_config_file("COCO-Detection/none.yaml")
    assert Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).name == "Base-RCNN-FPN.yaml"


# ---------------------------------------------------------------- yaml
def differences(name):
    """{key: value} of what a yaml config changes in the defaults."""

    def walk(a, b, prefix=""):
        for key in a:
            if isinstance(a[key], dict):
                yield from walk(a[key], b[key], f"{prefix}{key}.")
            elif a[key] != b[key]:
                yield prefix + key, a[key]

    return dict(walk(model_zoo.get_config(name), get_cfg()))


STAGES = ["res2", "res3", "res4", "res5"]
LEVELS = ["p2", "p3", "p4", "p5", "p6"]
COMMON = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.MAX_ITER": 90000,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
}
RCNN = {
    **COMMON,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    "MODEL.FPN.IN_FEATURES": STAGES,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": LEVELS,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": LEVELS[:4],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
RETINANET = {
    **COMMON,
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": STAGES[1:],
    "MODEL.FPN.IN_FEATURES": STAGES[1:],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    "SOLVER.BASE_LR": 0.01,
}
SCHEDULE_3X = {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000}
X101_MODEL = {
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.DEPTH": 101,
}
CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": None,  # 2000 again, the default
}


def with_norm(norm):
    return {
        **SCHEDULE_3X,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.FPN.NORM": norm,
        "MODEL.ROI_BOX_HEAD.NORM": norm,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_MASK_HEAD.NORM": norm,
    }


MASK_ON = {"MODEL.MASK_ON": True}
IS_101 = {"MODEL.RESNETS.DEPTH": 101}
YAML = {
    "Base-RCNN-FPN": RCNN,
    "Base-RetinaNet": RETINANET,
    DETECTION + "faster_rcnn_R_50_FPN_1x": RCNN,
    DETECTION + "faster_rcnn_R_50_FPN_3x": {**RCNN, **SCHEDULE_3X},
    DETECTION + "faster_rcnn_R_101_FPN_3x": {**RCNN, **SCHEDULE_3X, **IS_101},
    DETECTION + "faster_rcnn_X_101_32x8d_FPN_3x": {**RCNN, **SCHEDULE_3X, **X101_MODEL},
    DETECTION + "retinanet_R_50_FPN_1x": RETINANET,
    DETECTION + "retinanet_R_50_FPN_3x": {**RETINANET, **SCHEDULE_3X},
    DETECTION + "retinanet_R_101_FPN_3x": {**RETINANET, **SCHEDULE_3X, **IS_101},
    DETECTION + "rpn_R_50_FPN_1x": {
        **RCNN,
        "MODEL.META_ARCHITECTURE": "ProposalNetwork",
        "MODEL.RPN.POST_NMS_TOPK_TEST": 2000,
    },
    MASKS + "mask_rcnn_R_50_FPN_1x": {**RCNN, **MASK_ON},
    MASKS + "mask_rcnn_R_50_FPN_3x": {**RCNN, **MASK_ON, **SCHEDULE_3X},
    MASKS + "mask_rcnn_R_101_FPN_3x": {**RCNN, **MASK_ON, **SCHEDULE_3X, **IS_101},
    MASKS + "mask_rcnn_X_101_32x8d_FPN_3x": {**RCNN, **MASK_ON, **SCHEDULE_3X, **X101_MODEL},
    MASKS + "mask_rcnn_R_50_FPN_1x_giou": {
        **RCNN,
        **MASK_ON,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,
    },
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": {**RCNN, **MASK_ON, **CASCADE},
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": {**RCNN, **MASK_ON, **CASCADE, **SCHEDULE_3X},
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": {
        **RCNN,
        **MASK_ON,
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    },
    "Misc/mask_rcnn_R_50_FPN_3x_gn": {**RCNN, **MASK_ON, **with_norm("GN"), "MODEL.RESNETS.STRIDE_IN_1X1": False},
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": {
        **RCNN,
        **MASK_ON,
        **with_norm("GN"),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.BACKBONE.FREEZE_AT": 0,
    },
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": {**RCNN, **MASK_ON, **with_norm("SyncBN"), "TEST.PRECISE_BN.ENABLED": True},
    "PascalVOC-Detection/faster_rcnn_R_50_FPN": {
        **RCNN,
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(480, 801, 32)),
        "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
        "DATASETS.TEST": ("voc_2007_test",),
        "SOLVER.STEPS": (12000, 16000),
        "SOLVER.MAX_ITER": 18000,
        "SOLVER.WARMUP_ITERS": 100,
    },
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_configs_change_exactly_this(name):
    actual = differences(name + ".yaml")
    actual.pop("MODEL.WEIGHTS", None)
    expected = {k: v for k, v in YAML[name].items() if v is not None}
    sizes = "MODEL.ANCHOR_GENERATOR.SIZES"
    torch.testing.assert_close(torch.tensor(actual.pop(sizes)), torch.tensor(expected.pop(sizes)), rtol=1e-7, atol=0)
    if "SOLVER.BASE_LR" in expected:
        assert actual == expected


def test_every_yaml_file_is_covered():
    folder = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
    files = {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")}
    assert set(YAML) <= files
    if "embedded" in folder.parts:
        assert set(YAML) == files
