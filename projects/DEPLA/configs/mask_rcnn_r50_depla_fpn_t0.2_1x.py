"""Mask R-CNN, R-50-FPN-DEPLA, T = 0.2: Table 4."""

from .mask_rcnn_r50_depla_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.temperature = 0.2
