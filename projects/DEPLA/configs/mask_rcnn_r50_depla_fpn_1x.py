"""Mask R-CNN, R-50-FPN-DEPLA, T = 0.5: the best row of Table 4."""

from projects.DEPLA.fpn import DEPLAFPN

from .common.sites import fpn_depla
from .mask_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone._target_ = DEPLAFPN
model.backbone.depla = fpn_depla
del fpn_depla  # a config's variables are its keys
