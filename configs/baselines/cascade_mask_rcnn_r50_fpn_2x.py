"""Cascade Mask R-CNN, R-50-FPN, 2x."""

from .cascade_mask_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
