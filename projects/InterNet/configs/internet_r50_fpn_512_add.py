"""InterNet, Table 2c, naive add, which diverges in the paper."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_head.fusion = "add"
