"""A10: losses divided by the batch's own sums of weights."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.normalizer = "weight_sum"
