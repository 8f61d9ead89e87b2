"""The detector of quick.py with make-up and critic, without the intertwiner."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.intertwiner = None
train.output_dir = "./output/internet_quick_control"
