"""Mask R-CNN, FishNet150-FPN: Table 5, 41.5 box and 37.0 mask AP."""

from .common.fishnet_detection import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.aggregation = None
train.init_checkpoint = "fishnet150.pth"  # model_final.pth of fishnet150_imagenet_100e.py
