"""A10: losses divided by the batch's number of objects."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.normalizer = "num_gt"
