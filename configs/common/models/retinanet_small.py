"""A RetinaNet for trials on a CPU: images of about 200 px, any 10 classes, trained from random initialisation.

The narrow ResNet of faster_rcnn_small.py, FPN with 64 channels, P3 to P7, two convolutions with group norm in each
tower, four anchors a cell.
"""

from detectron2.layers import ShapeSpec

from .faster_rcnn_small import model as _rcnn
from .retinanet import model

model.backbone.update(bottom_up=_rcnn.backbone.bottom_up, out_channels=64)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.top_block.in_channels = 256
model.head.update(input_shape=[ShapeSpec(channels=64)] * 5, conv_dims=[64, 64], num_anchors=4, norm="GN")
model.anchor_generator.update(
    sizes=[[x, x * 2**0.5] for x in (20, 40, 80, 160, 320)], aspect_ratios=[1.0, 1.7], offset=0.5
)
model.update(num_classes=10, pixel_std=_rcnn.pixel_std)
