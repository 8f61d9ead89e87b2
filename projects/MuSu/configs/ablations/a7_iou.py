"""A7: an anchor in two bags goes to the larger IoU."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.conflict = "iou"
