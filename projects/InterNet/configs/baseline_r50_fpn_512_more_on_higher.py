"""Baseline of Table 2a, more on higher levels: base 40."""

from .baseline_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.assigner.base = 40
