"""Faster R-CNN, LIP-R-101-FPN, 2x: the paper's best detector (AP 41.7 there)."""

from .faster_rcnn_lip_r101_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
