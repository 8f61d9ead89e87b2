"""Faster R-CNN, LIP-R-50-FPN, 2x: the paper's schedule, as far as its baselines tell."""

from .faster_rcnn_lip_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
