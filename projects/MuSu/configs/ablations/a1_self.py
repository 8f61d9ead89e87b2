"""A1, self-supervision: each head ranks by its own score."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(mix_own_cls=1.0, mix_own_reg=1.0)
