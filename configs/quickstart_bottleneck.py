"""The quickstart's detector with bottleneck blocks: the plain host of methods that stand in those."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from .quickstart import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=1,
        in_channels=in_channels,
        out_channels=width * 4,
        bottleneck_channels=width,
        stride_per_block=[stride],
        norm="BN",
    )
    for in_channels, width, stride in ((32, 16, 1), (64, 32, 2), (128, 64, 2), (256, 128, 2))
]
train.output_dir = "./output/quickstart_bottleneck"
