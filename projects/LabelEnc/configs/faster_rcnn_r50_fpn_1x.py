"""Faster R-CNN ("FPN" in the paper), R-50-FPN, 1x: the baseline. The others state what they change."""

from .common.faster_rcnn import model
from .common.recipe import dataloader, lr_multiplier, optimizer, train

train.output_dir = "./output/labelenc/faster_rcnn_r50_fpn_1x"
