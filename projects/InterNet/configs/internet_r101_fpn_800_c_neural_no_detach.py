"""InterNet, Table 1 (c) neural, with a gradient to the generators (ours)."""

from .internet_r101_fpn_800_c_neural import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.detach = False
