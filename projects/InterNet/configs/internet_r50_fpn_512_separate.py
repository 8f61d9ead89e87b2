"""InterNet, Table 2c, separate: the critic is a side branch, absent at inference."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_head.fusion = "separate"
