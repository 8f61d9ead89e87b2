"""FCOS, R-101-FPN, deformable in c3-c5, 2x."""

from .fcos_r101_dcn_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
