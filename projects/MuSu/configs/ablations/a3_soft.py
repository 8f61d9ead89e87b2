"""A3: twice the temperatures."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(temp_div_cls=1.0, temp_div_reg=0.5)
