"""MuSu, R-50-FPN, 1x, three anchors a location."""

from .musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.aspect_ratios = [0.5, 1.0, 2.0]
model.head.num_anchors = 3
