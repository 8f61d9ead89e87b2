"""Faster R-CNN with a ResNet-50-FPN for torchvision's weights: stride in the 3x3 convolutions, RGB."""

from .....configs.common.mmdetection_1x import pixels
from .....configs.common.models.faster_rcnn_fpn import model

model.update(pixels)
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2  # stem and res2
del pixels  # a config's variables are its keys
