"""MODEL.MUSU: the keys of MuSu's YAML form; their values are the constructors' own defaults."""

from dataclasses import fields

from detectron2.config import CfgNode
from shared.config import register_project_config

from .assign import MuSuAssigner
from .atss import ATSSAssigner
from .losses import QualityFocal, TwoSidedFocal

CLS_LOSSES = ("focal", "qfl")
ASSIGNERS = ("musu", "atss")


@register_project_config
def add_musu_config(cfg: CfgNode) -> None:
    """MODEL.MUSU. Classes and levels are MODEL.RETINANET's NUM_CLASSES and IN_FEATURES, as of all dense detectors."""
    node = cfg.MODEL.MUSU = CfgNode()
    node.NUM_CONVS = 4  # of each tower
    node.NORM = "GN"
    node.PRIOR_PROB = 0.01
    node.ANCHOR_SCALE = 8.0  # side of the smallest square anchor, in strides
    node.OCTAVES = 1  # sizes within an octave; OCTAVES times the ratios: anchors at a location
    node.ASPECT_RATIOS = [1.0]
    node.REG_PARAM = "delta"  # or ltrb
    node.ASSIGNER = "musu"  # or atss
    for field in fields(MuSuAssigner):
        node[field.name.upper()] = field.default
    node.ATSS_TOPK = ATSSAssigner.topk
    node.CLS_LOSS = "focal"  # or qfl
    node.FOCAL_ALPHA, node.FOCAL_GAMMA = TwoSidedFocal.alpha, TwoSidedFocal.gamma
    node.QFL_BETA = QualityFocal.beta
    node.REG_LOSS_WEIGHT = 2.0
    node.NORMALIZER = "weight_sum_ema"  # or weight_sum, num_gt
    node.BALANCE_GT = False
    node.WARMUP_ITERS = 0  # of the assignment
    node.STATS_PERIOD = 20
    node.SCORE_THRESH_TEST = 0.05
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6


def assigner_of(node: CfgNode) -> MuSuAssigner | ATSSAssigner:
    """The assigner that MODEL.MUSU describes. ValueError: no such one."""
    if node.ASSIGNER not in ASSIGNERS:
        raise ValueError(f"MODEL.MUSU.ASSIGNER is {node.ASSIGNER!r}, choose one of {', '.join(ASSIGNERS)}.")
    if node.ASSIGNER == "atss":
        return ATSSAssigner(topk=node.ATSS_TOPK)
    return MuSuAssigner(**{field.name: node[field.name.upper()] for field in fields(MuSuAssigner)})


def cls_loss_of(node: CfgNode) -> TwoSidedFocal | QualityFocal:
    """The class loss that MODEL.MUSU describes. ValueError: no such one."""
    if node.CLS_LOSS not in CLS_LOSSES:
        raise ValueError(f"MODEL.MUSU.CLS_LOSS is {node.CLS_LOSS!r}, choose one of {', '.join(CLS_LOSSES)}.")
    if node.CLS_LOSS == "qfl":
        return QualityFocal(beta=node.QFL_BETA)
    return TwoSidedFocal(alpha=node.FOCAL_ALPHA, gamma=node.FOCAL_GAMMA)
