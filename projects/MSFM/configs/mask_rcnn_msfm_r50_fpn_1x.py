"""Mask R-CNN, R-50-FPN, 12 epochs, with MSFM at positions 2 and 3: Tables 4 and 5."""

from .common.msfm import stages
from .mask_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = stages
del stages  # a config's variables are its keys
