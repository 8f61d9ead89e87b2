"""InterNet, Table 2d: all history, decayed; the rate is ours."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.buffer.mode = "decay"
