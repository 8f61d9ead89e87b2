"""The detector of retinanet_quick_1x.py, 2x."""

from .retinanet_quick_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 720
train.output_dir = "./output/labelenc/retinanet_quick_2x"
