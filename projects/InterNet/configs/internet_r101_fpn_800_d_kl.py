"""InterNet, Table 1 (d) KL."""

from .internet_r101_fpn_800_d_ot import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.transport.loss = "kl"
