"""ATSS with nine anchors a location."""

from .atss_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.update(octaves=3, aspect_ratios=[0.5, 1.0, 2.0])
model.head.num_anchors = 9
