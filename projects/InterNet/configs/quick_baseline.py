"""The detector of quick.py without make-up, critic and intertwiner."""

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.update(makeup=None, critic=None, intertwiner=None)
model.roi_heads.box_head.fusion = "separate"
train.output_dir = "./output/internet_quick_baseline"
