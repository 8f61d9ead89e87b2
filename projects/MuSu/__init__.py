"""MuSu: mutual supervision for dense detectors (arXiv:2109.05986). Importing it registers the detector, MODEL.MUSU."""

from .alignment import AlignmentEvaluator
from .assign import Assignment, MuSuAssigner, musu_assign
from .atss import ATSSAssigner
from .config import add_musu_config
from .detector import MuSu, build_p3_p7_resnet_fpn_backbone, tiled_anchors
from .losses import QualityFocal, TwoSidedFocal
from .pairs import Grid, Scene
