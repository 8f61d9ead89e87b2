"""Faster R-CNN, R-50-FPN, 12 epochs, with MSFM at positions 2 and 3: the final row of Table 3, and of Table 4."""

from .common.msfm import stages
from .faster_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = stages
del stages  # a config's variables are its keys
