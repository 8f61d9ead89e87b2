"""InterNet, Table 2b: l1."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.update(loss="l1", loss_weight=1.0)
