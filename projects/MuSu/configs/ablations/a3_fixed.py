"""A3: one temperature for all bags."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.temp_mode = "fixed"
