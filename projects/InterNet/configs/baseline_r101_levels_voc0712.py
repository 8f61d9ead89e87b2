"""R-101 without FPN on VOC 07+12: the same detector without make-up, critic and intertwiner (ours)."""

from .internet_r101_levels_voc0712 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.update(makeup=None, critic=None, intertwiner=None)
model.roi_heads.box_head.fusion = "separate"
