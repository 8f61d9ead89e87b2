"""InterNet, Table 2d: a window of one epoch."""

from .internet_r101_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.buffer.update(mode="partial", window=14_658)
