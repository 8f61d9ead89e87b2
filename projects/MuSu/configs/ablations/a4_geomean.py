"""A4: bags by the geometric mean of score and IoU."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_joint = "geomean"
