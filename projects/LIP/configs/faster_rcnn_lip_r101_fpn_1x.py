"""Faster R-CNN, LIP-R-101-FPN, 1x."""

from .faster_rcnn_lip_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.depth = 101
train.init_checkpoint = "lip_resnet101.pth"  # made by tools/convert_lip_checkpoint.py
