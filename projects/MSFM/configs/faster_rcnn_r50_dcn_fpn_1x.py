"""Faster R-CNN, R-50-FPN, deformable in c3-c5, 12 epochs: Table 4's plain "Dconv"."""

from ....configs.common.models.resnet_dcn import stages
from .faster_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = stages
model.backbone.bottom_up.stages.stride_in_1x1 = False
del stages  # a config's variables are its keys
