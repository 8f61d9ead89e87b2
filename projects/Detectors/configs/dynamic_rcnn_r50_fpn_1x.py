"""Dynamic R-CNN, R-50-FPN, 1x: the baseline. The other dynamic_rcnn configs state what they change."""

from ....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, train
from .common.dynamic_rcnn import model
