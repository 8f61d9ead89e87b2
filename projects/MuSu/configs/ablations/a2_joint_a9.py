"""A2: nine anchors a location, both heads rank by one score."""

from ..musu_r50_a9_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=0.5, mix_own_reg=0.5)
