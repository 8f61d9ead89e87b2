"""InterNet, l2 with weight 10, as the authors' released config."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner.loss_weight = 10.0
