"""Faster R-CNN, R-50-FPN, 2x."""

from .faster_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
train.output_dir = "./output/labelenc/faster_rcnn_r50_fpn_2x"
