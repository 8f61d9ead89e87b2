"""Mask R-CNN, R-101-FPN, deformable in c3-c5, 2x."""

from .mask_rcnn_r101_dcn_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
