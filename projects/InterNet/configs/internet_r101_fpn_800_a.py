"""InterNet, Table 1 (a): large objects pooled from the small ones' level."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.large_source = "a"
