"""A7: an anchor stays in all its bags."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.conflict = "multi"
