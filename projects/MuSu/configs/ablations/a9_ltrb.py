"""A9: boxes as distances of their sides."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.reg_param = "ltrb"
