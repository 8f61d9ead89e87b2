"""A6: hard labels on the same bags."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.weight_fn = "hard"
