"""A10: every object counts the same."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.balance_gt = True
