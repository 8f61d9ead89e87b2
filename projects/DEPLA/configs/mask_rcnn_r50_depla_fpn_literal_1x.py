"""Mask R-CNN, R-50-FPN-DEPLA by the letter of the text: in place of FPN's sum, and without the area's factor."""

from .mask_rcnn_r50_depla_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.update(keep_sum=False, map_scale="none", zero_init=False)
