"""A8: candidates near the object's centre only."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_region = "center"
