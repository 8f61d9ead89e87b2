"""InterNet, Table 2d: a window of 2000 iterations."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.buffer.update(mode="partial", window=2000)
