"""A3: half the temperatures."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(temp_div_cls=4.0, temp_div_reg=2.0)
