"""Detectors that Detectron2 lacks: importing it registers RoI heads, meta-architectures and keys."""

from .config import add_detectors_config
from .dynamic_rcnn import DynamicROIHeads, DynamicStatistics
from .grid_head import GridHead, PointFusion
from .grid_rcnn import ClassificationOutputLayers, GridROIHeads
from .reppoints import RepPoints
from .reppoints_head import RepPointsHead
from .reppoints_points import PointConv2d, PointsToBox
