"""Faster R-CNN, R-50-FPN, deformable in c3-c5, with MSFM, 12 epochs: Table 4."""

from .faster_rcnn_msfm_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.deform_on_per_stage = [False, True, True, True]
