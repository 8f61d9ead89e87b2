"""InterNet of Table 2a, levels by RoI size."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.assigner.rule = "roi_size"
