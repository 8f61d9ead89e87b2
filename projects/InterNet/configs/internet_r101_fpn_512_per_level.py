"""InterNet, Table 2e: a buffer per level."""

from .internet_r101_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.buffer.per_level = True
