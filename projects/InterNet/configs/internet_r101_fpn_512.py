"""InterNet, R-101-FPN, long side 512: Table 1 (b), Table 2d (all, equal), Table 2e (one buffer; detach)."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
