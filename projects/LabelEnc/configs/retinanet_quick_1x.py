"""A small RetinaNet on the digit scenes, from nothing, on a CPU: the plain host of the quick configs, 1x.

configs/quickstart.py's backbone, FPN with 64 channels, P3 to P6, group norm in the head; 360 steps are "1x".
"""

from detectron2.layers import ShapeSpec

from ....configs.common.models.retinanet import model
from ....configs.common.schedule import steps as lr_multiplier
from ....configs.quickstart import dataloader, optimizer, train
from ....configs.quickstart import model as _quickstart

model.backbone.update(bottom_up=_quickstart.backbone.bottom_up, out_channels=64)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.top_block.in_channels = 256
model.head.update(input_shape=[ShapeSpec(channels=64)] * 5, conv_dims=[64, 64], num_anchors=4, norm="GN")
model.anchor_generator.update(
    sizes=[[x, x * 2**0.5] for x in (20, 40, 80, 160, 320)], aspect_ratios=[1.0, 1.7], offset=0.5
)
model.update(num_classes=10, pixel_std=_quickstart.pixel_std)

lr_multiplier.update(warmup_iters=30, warmup_factor=0.01)
train.max_iter = 360
train.output_dir = "./output/labelenc/retinanet_quick_1x"
