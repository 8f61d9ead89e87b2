"""A12: hard labels near the centre, the smallest object first, as FCOS has them."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.update(bag_region="center", bag_filter="none", conflict="min_area", weight_fn="hard")
