"""A1, joint: both heads rank by one score, the conventional joint assignment."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=0.5, mix_own_reg=0.5)
