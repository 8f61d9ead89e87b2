"""Baseline of Table 2a, default: the same detector and levels without make-up, critic and intertwiner."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.update(makeup=None, critic=None, intertwiner=None)
model.roi_heads.box_head.fusion = "separate"
