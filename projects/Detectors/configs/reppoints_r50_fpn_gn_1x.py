"""RepPoints, R-50-FPN, group norm in pyramid and towers, 1x."""

from .reppoints_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.norm = "GN"
model.head.norm = "GN"
