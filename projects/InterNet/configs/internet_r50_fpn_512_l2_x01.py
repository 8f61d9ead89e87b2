"""InterNet, Table 2b: l2, weight 0.1."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.update(loss="l2", loss_weight=0.1)
