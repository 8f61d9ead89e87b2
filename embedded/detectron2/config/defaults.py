"""Every default of `get_cfg()`."""

from .config import CfgNode as CN

# fmt: off
_POOLER = {"POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2"}
_SMOOTH_L1 = {
    "BBOX_REG_LOSS_TYPE": "smooth_l1", "BBOX_REG_LOSS_WEIGHT": 1.0, "SMOOTH_L1_BETA": 0.0,
}

_C = CN({"VERSION": 2, "OUTPUT_DIR": "./output", "CUDNN_BENCHMARK": False,
         "FLOAT32_PRECISION": "", "VIS_PERIOD": 0, "GLOBAL": {"HACK": 1.0}})
_C.SEED = -1  # negative: a random seed

_C.MODEL = CN({
    "META_ARCHITECTURE": "GeneralizedRCNN", "WEIGHTS": "", "DEVICE": "cuda",
    "MASK_ON": False, "KEYPOINT_ON": False, "LOAD_PROPOSALS": False,
    "PIXEL_MEAN": [103.530, 116.280, 123.675],  # BGR
    "PIXEL_STD": [1.0, 1.0, 1.0],  # the MSRA weights have the std in their first conv
    "BACKBONE": {"NAME": "build_resnet_backbone", "FREEZE_AT": 2},
    "FPN": {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"},
    "PROPOSAL_GENERATOR": {"NAME": "RPN", "MIN_SIZE": 0},
})
_C.MODEL.ANCHOR_GENERATOR = CN({
    "NAME": "DefaultAnchorGenerator", "OFFSET": 0.0,  # in strides
    "SIZES": [[32, 64, 128, 256, 512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "ANGLES": [[-90, 0, 90]],
})
_C.MODEL.RPN = CN({
    "HEAD_NAME": "StandardRPNHead", "CONV_DIMS": [-1],  # -1: as many as the input
    "IN_FEATURES": ["res4"], "BOUNDARY_THRESH": -1,
    "IOU_THRESHOLDS": [0.3, 0.7], "IOU_LABELS": [0, -1, 1],
    "BATCH_SIZE_PER_IMAGE": 256, "POSITIVE_FRACTION": 0.5,
    "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "LOSS_WEIGHT": 1.0, **_SMOOTH_L1,
    "PRE_NMS_TOPK_TRAIN": 12000, "PRE_NMS_TOPK_TEST": 6000,  # per level with FPN
    "POST_NMS_TOPK_TRAIN": 2000, "POST_NMS_TOPK_TEST": 1000, "NMS_THRESH": 0.7,
})
_C.MODEL.ROI_HEADS = CN({
    "NAME": "Res5ROIHeads", "NUM_CLASSES": 80, "IN_FEATURES": ["res4"],
    "IOU_THRESHOLDS": [0.5], "IOU_LABELS": [0, 1], "PROPOSAL_APPEND_GT": True,
    "BATCH_SIZE_PER_IMAGE": 512, "POSITIVE_FRACTION": 0.25,
    "SCORE_THRESH_TEST": 0.05, "NMS_THRESH_TEST": 0.5,
})
_C.MODEL.ROI_BOX_HEAD = CN({
    "NAME": "", "NUM_FC": 0, "FC_DIM": 1024, "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "",
    "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0), **_SMOOTH_L1, **_POOLER,
    "CLS_AGNOSTIC_BBOX_REG": False, "TRAIN_ON_PRED_BOXES": False,
    "USE_SIGMOID_CE": False, "USE_FED_LOSS": False,
    "FED_LOSS_FREQ_WEIGHT_POWER": 0.5, "FED_LOSS_NUM_CLASSES": 50,
})
_C.MODEL.ROI_BOX_CASCADE_HEAD = CN({
    "BBOX_REG_WEIGHTS": (
        (10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0),
    ),
    "IOUS": (0.5, 0.6, 0.7),
})
_C.MODEL.ROI_MASK_HEAD = CN({
    "NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "",
    "CLS_AGNOSTIC_MASK": False, **_POOLER,
})
_C.MODEL.RETINANET = CN({
    "NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "NUM_CONVS": 4, "NORM": "", "PRIOR_PROB": 0.01,
    "IOU_THRESHOLDS": [0.4, 0.5], "IOU_LABELS": [0, -1, 1],
    "SCORE_THRESH_TEST": 0.05, "TOPK_CANDIDATES_TEST": 1000, "NMS_THRESH_TEST": 0.5,
    "FOCAL_LOSS_GAMMA": 2.0, "FOCAL_LOSS_ALPHA": 0.25,
    "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "SMOOTH_L1_LOSS_BETA": 0.1,
})
_C.MODEL.RESNETS = CN({
    "DEPTH": 50, "OUT_FEATURES": ["res4"], "NORM": "FrozenBN",
    "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "RES5_DILATION": 1,
    "STRIDE_IN_1X1": True,  # as in the MSRA weights; False for torchvision's
    "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256,
    "DEFORM_ON_PER_STAGE": [False] * 4, "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1,
})

# Nothing reads these three; they are here so that configs of either engine merge.
_C.MODEL.ROI_KEYPOINT_HEAD = CN({
    "NAME": "KRCNNConvDeconvUpsampleHead", "CONV_DIMS": (512,) * 8, **_POOLER,
    "NUM_KEYPOINTS": 17, "MIN_KEYPOINTS_PER_IMAGE": 1,
    "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True, "LOSS_WEIGHT": 1.0,
})
_C.MODEL.SEM_SEG_HEAD = CN({
    "NAME": "SemSegFPNHead", "IN_FEATURES": ["p2", "p3", "p4", "p5"], "IGNORE_VALUE": 255,
    "NUM_CLASSES": 54, "CONVS_DIM": 128, "COMMON_STRIDE": 4, "NORM": "GN", "LOSS_WEIGHT": 1.0,
})
_C.MODEL.PANOPTIC_FPN = CN({
    "INSTANCE_LOSS_WEIGHT": 1.0,
    "COMBINE": {"ENABLED": True, "OVERLAP_THRESH": 0.5, "STUFF_AREA_LIMIT": 4096,
                "INSTANCES_CONFIDENCE_THRESH": 0.5},
})

_C.INPUT = CN({
    "FORMAT": "BGR", "MASK_FORMAT": "polygon",  # or "bitmask"
    "MIN_SIZE_TRAIN": (800,), "MIN_SIZE_TRAIN_SAMPLING": "choice",  # or "range"
    "MAX_SIZE_TRAIN": 1333, "MIN_SIZE_TEST": 800, "MAX_SIZE_TEST": 1333,
    "RANDOM_FLIP": "horizontal",  # or "vertical", "none"
    "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": [0.9, 0.9]},
})
_C.DATASETS = CN({
    "TRAIN": (), "PROPOSAL_FILES_TRAIN": (), "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "TEST": (), "PROPOSAL_FILES_TEST": (), "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
})
_C.DATALOADER = CN({
    "NUM_WORKERS": 4, "SAMPLER_TRAIN": "TrainingSampler", "ASPECT_RATIO_GROUPING": True,
    "REPEAT_THRESHOLD": 0.0, "REPEAT_SQRT": True, "FILTER_EMPTY_ANNOTATIONS": True,
})
_C.SOLVER = CN({
    "IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 0,  # the batch is that of all workers together
    "MAX_ITER": 40000, "CHECKPOINT_PERIOD": 5000,
    "BASE_LR": 0.001, "BASE_LR_END": 0.0, "BIAS_LR_FACTOR": 1.0,
    "MOMENTUM": 0.9, "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": None,  # None: the first
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR", "GAMMA": 0.1, "STEPS": (30000,), "NUM_DECAYS": 3,
    "WARMUP_FACTOR": 0.001, "WARMUP_ITERS": 1000, "WARMUP_METHOD": "linear",
    "RESCALE_INTERVAL": False,
    "CLIP_GRADIENTS": {
        "ENABLED": False, "CLIP_TYPE": "value", "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0,
    },
    "AMP": {"ENABLED": False},
})
_C.TEST = CN({
    "EXPECTED_RESULTS": [],  # of [task, metric, value, tolerance]
    "EVAL_PERIOD": 0, "DETECTIONS_PER_IMAGE": 100, "KEYPOINT_OKS_SIGMAS": [],
    "AUG": {
        "ENABLED": False, "FLIP": True, "MAX_SIZE": 4000,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
})
