"""A1, pure mutual: each head sees only the other's score."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=0.0, mix_own_reg=0.0)
