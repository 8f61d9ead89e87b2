"""A4: bags above the mean."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_filter_k = 0.0
