"""Mask R-CNN, FishNet150-DEPLA-FPN: Table 5, 44.1 box and 39.4 mask AP."""

from .common.fishnet_detection import dataloader, lr_multiplier, model, optimizer, train

optimizer.lr = 0.015  # "for FishNet-DEPLA"; 0.02 for detectors otherwise
train.init_checkpoint = "depla_fishnet150.pth"  # model_final.pth of depla_fishnet150_imagenet_100e.py
