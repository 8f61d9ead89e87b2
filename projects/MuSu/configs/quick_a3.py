"""The detector of quick.py with three anchors a location: three shapes."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.anchor_generator.aspect_ratios = [0.5, 1.0, 2.0]
model.head.num_anchors = 3
train.output_dir = "./output/musu_quick_a3"
