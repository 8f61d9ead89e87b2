"""Mask R-CNN, R-50-FPN-DEPLA that leaves the batch's padding out of its softmaxes. Not in the paper."""

from projects.DEPLA.padding import PaddingMaskRCNN

from .mask_rcnn_r50_depla_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model._target_ = PaddingMaskRCNN
model.backbone.depla.mask_padding = True
