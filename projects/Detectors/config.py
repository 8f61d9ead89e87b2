"""MODEL.ROI_GRID_HEAD, MODEL.DYNAMIC_RCNN, MODEL.REPPOINTS: keys of the YAML form.

Their values are the constructors' own defaults.
"""

from detectron2.config import CfgNode
from shared.config import register_project_config


@register_project_config
def add_detectors_config(cfg: CfgNode) -> None:
    """Add the nodes with their defaults."""
    _add_grid_rcnn(cfg)
    _add_dynamic_rcnn(cfg)
    _add_reppoints(cfg)


def _add_grid_rcnn(cfg: CfgNode) -> None:
    node = cfg.MODEL.ROI_GRID_HEAD = CfgNode()
    node.NUM_POINTS = 9  # a square number
    node.NUM_CONVS = 8
    node.POINT_CHANNELS = 64
    node.NORM_GROUPS = 36
    node.POOLER_RESOLUTION = 14  # heatmaps have twice the side
    node.POOLER_SAMPLING_RATIO = 0
    node.POOLER_TYPE = "ROIAlignV2"
    node.POS_RADIUS = 1  # cells around a point that are positive
    node.LOSS_WEIGHT = 15.0
    node.JITTER = 0.15  # of a training RoI, in its width and height
    node.MAX_SAMPLES = 192  # RoIs of one process and iteration


def _add_dynamic_rcnn(cfg: CfgNode) -> None:
    node = cfg.MODEL.DYNAMIC_RCNN = CfgNode()
    node.IOU_TOPK = 75  # of one image's proposals
    node.BETA_TOPK = 10  # per image
    node.UPDATE_INTERVAL = 100  # iterations
    node.MIN_IOU = 0.4  # ROI_HEADS.IOU_THRESHOLDS holds in the first interval
    node.INITIAL_BETA = 1.0
    node.SYNC = False


def _add_reppoints(cfg: CfgNode) -> None:
    """Classes and levels are MODEL.RETINANET's NUM_CLASSES and IN_FEATURES, as of all dense detectors."""
    node = cfg.MODEL.REPPOINTS = CfgNode()
    node.NUM_POINTS = 9  # or 25, 49: cells of a convolution's kernel
    node.NUM_CONVS = 3
    node.NORM = ""  # of the towers; or GN
    node.PRIOR_PROB = 0.01
    node.INIT_GRAD = 0.1  # what class and refine losses send to the first points
    node.POINTS_TO_BOX = "moment"  # or minmax, partial_minmax
    node.MOMENT_GRAD = 0.01
    node.POINT_SCALE = 4.0  # sides of objects, in strides of their level
    node.IOU_THRESHOLDS = [0.4, 0.5]  # of the first points' boxes
    node.IOU_LABELS = [0, -1, 1]
    node.FOCAL_LOSS_ALPHA = 0.25
    node.FOCAL_LOSS_GAMMA = 2.0
    node.SMOOTH_L1_BETA = 0.11
    node.INIT_LOSS_WEIGHT = 0.5
    node.REFINE_LOSS_WEIGHT = 1.0
    node.SCORE_THRESH_TEST = 0.05
    node.NMS_THRESH_TEST = 0.5
    node.TOPK_CANDIDATES_TEST = 1000  # locations per level
