"""A RetinaNet small enough for a test: 64 px images, 16 channels, 3 classes, three levels."""

from detectron2.layers import ShapeSpec

from ...configs.common.models.retinanet import model
from .faster_rcnn import dataloader, lr_multiplier, optimizer, train
from .faster_rcnn import model as _faster_rcnn

model.backbone.update(bottom_up=_faster_rcnn.backbone.bottom_up, out_channels=16, top_block=None)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.head.update(input_shape=[ShapeSpec(channels=16)] * 3, conv_dims=[16], num_anchors=1)
model.anchor_generator.update(sizes=[[16], [32], [64]], aspect_ratios=[1.0], strides=[8, 16, 32])
model.update(num_classes=3, head_in_features=["p3", "p4", "p5"], test_score_thresh=0.0)
