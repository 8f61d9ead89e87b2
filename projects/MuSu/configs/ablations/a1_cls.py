"""A1: mutual for the class head only."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.mix_own_reg = 0.5
