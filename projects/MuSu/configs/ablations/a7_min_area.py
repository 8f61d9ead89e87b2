"""A7: an anchor in two bags goes to the smaller object."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.conflict = "min_area"
