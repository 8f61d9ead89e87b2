"""Mask R-CNN, FishNet150-DEPLA-FPN with C' = 128: the reading that comes near the paper's FLOPs."""

from .mask_rcnn_depla_fishnet150_fpn_24e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.aggregation.mid_channels = 128
train.init_checkpoint = "depla_fishnet150_wide.pth"  # model_final.pth of depla_fishnet150_wide_imagenet_100e.py
