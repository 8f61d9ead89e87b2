"""A4: the bag is every anchor inside."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_filter = "none"
