"""Detectron2's FCOS with the training of musu_r50_fpn_1x.py."""

from ....configs.common.models.fcos import model
from .common.training import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.freeze_at = 2  # stem and res2
