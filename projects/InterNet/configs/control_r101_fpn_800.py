"""R-101-FPN control of equal size at 800 px (ours): units without the intertwiner."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner = None
