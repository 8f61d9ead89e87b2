"""Faster R-CNN, R-50-FPN, 12 epochs: the plain twin of faster_rcnn_msfm_r50_fpn_1x.py, in the paper's recipe."""

from ....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, train
from ...Detectors.configs.common.faster_rcnn import model
