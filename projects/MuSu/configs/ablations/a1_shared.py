"""A1: one share for both heads."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=0.2, mix_own_reg=0.2)
