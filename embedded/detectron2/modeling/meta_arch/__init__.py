"""Whole detectors: from a list of dataset dicts to losses or detections."""

from .build import META_ARCH_REGISTRY, build_model
from .dense_detector import DenseDetector
from .fcos import FCOS
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .retinanet import RetinaNet
