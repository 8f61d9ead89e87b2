"""A Faster R-CNN for trials on a CPU: 2.3 M parameters, images of about 200 px, any 10 classes.

A narrow ResNet with one basic block a stage and batch norm, trained from random initialisation,
FPN with 64 channels and no P6, two anchors a cell, two fully connected layers of 256.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from .faster_rcnn_fpn import model

resnet = model.backbone.bottom_up
resnet.stem = dict(resnet.stem, out_channels=32, norm="BN")
resnet.stages = [
    L(ResNet.make_stage)(
        block_class=BasicBlock,
        num_blocks=1,
        in_channels=in_channels,
        out_channels=out_channels,
        stride_per_block=[stride],
        norm="BN",
    )
    for in_channels, out_channels, stride in ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2))
]
model.backbone.out_channels = 64
model.backbone.top_block = None

rpn = model.proposal_generator
rpn.in_features = ["p2", "p3", "p4", "p5"]
rpn.head.update(in_channels=64, num_anchors=2)
rpn.anchor_generator.update(
    sizes=[[24], [48], [88], [144]], aspect_ratios=[1.0, 1.7], strides=[4, 8, 16, 32], offset=0.5
)
rpn.update(batch_size_per_image=128, pre_nms_topk=(500, 300), post_nms_topk=(200, 100))

heads = model.roi_heads
heads.update(num_classes=10, batch_size_per_image=64)
heads.box_pooler.sampling_ratio = 1
heads.box_head.update(input_shape=ShapeSpec(channels=64, height=7, width=7), fc_dims=[256, 256])
heads.box_predictor.input_shape = ShapeSpec(channels=256)

model.pixel_std = [57.375, 57.120, 58.395]
del resnet, rpn, heads  # a config's variables are its keys
