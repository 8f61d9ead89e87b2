"""Grid R-CNN, R-50-FPN, 1x: the baseline. The other grid_rcnn configs state what they change."""

from ....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, train
from .common.grid_rcnn import model
