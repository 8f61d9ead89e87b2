"""InterNet, Table 2e: gradients reach the large objects' features."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.detach = False
