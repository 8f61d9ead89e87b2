"""A7: an object without a location inside gets the nearest one."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_fallback = "nearest"
