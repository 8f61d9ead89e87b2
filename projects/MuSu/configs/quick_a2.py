"""The detector of quick.py with two anchors a location: two sizes."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.octaves = 2
model.head.num_anchors = 2
train.output_dir = "./output/musu_quick_a2"
