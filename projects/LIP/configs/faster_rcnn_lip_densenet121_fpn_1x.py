"""Faster R-CNN, LIP-DenseNet-121-FPN, 1x. Not in the paper, which has this backbone on ImageNet alone."""

from .common.lip_densenet import bottom_up
from .faster_rcnn_lip_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = bottom_up
train.init_checkpoint = "lip_densenet121.pth"  # model_final.pth of lip_densenet121_imagenet_90e.py
del bottom_up
