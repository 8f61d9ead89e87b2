"""Cascade R-CNN, R-101-FPN, deformable in c3-c5, 1x."""

from ..common.models.resnet_dcn import stages as _stages
from .cascade_rcnn_r101_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = _stages
model.backbone.bottom_up.stages.depth = 101
