"""Cascade R-CNN, R-101-FPN, 24 epochs, multi-scale, with MSFM at positions 2 and 3: Table 6."""

from .cascade_rcnn_r101_fpn_2x_ms import dataloader, lr_multiplier, model, optimizer, train
from .common.msfm import stages

model.backbone.bottom_up.stages = stages
model.backbone.bottom_up.stages.depth = 101
del stages  # a config's variables are its keys
