"""Mask R-CNN, R-50-FPN, 12 epochs: the plain twin of mask_rcnn_msfm_r50_fpn_1x.py."""

from ....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, pixels, train
from ....configs.common.models.mask_rcnn_fpn import model

model.update(pixels)
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2  # stem and res2
dataloader.train.mapper.use_instance_mask = True
del pixels  # a config's variables are its keys
