"""A4: bags above mean + 2 std."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_filter_k = 2.0
