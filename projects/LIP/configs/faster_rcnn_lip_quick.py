"""A small Faster R-CNN with a LIP-ResNet on the digit scenes, from nothing, on a CPU.

The quickstart's detector with bottleneck blocks, since LIP-ResNet is built of them; Bottleneck-32 at all seven sites.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import LIPBottleneckBlock, LIPStem

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

resnet = model.backbone.bottom_up
resnet.stem = L(LIPStem)(
    in_channels=3,
    out_channels=32,
    norm="BN",
    pooling=L(Pooling)(kind="lip", logit="bottleneck", width=32, gate=12.0, init="zero_conv"),
)
resnet.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=1,
        in_channels=32,
        out_channels=64,
        bottleneck_channels=16,
        stride_per_block=[1],
        norm="BN",
    )
] + [
    L(ResNet.make_stage)(
        block_class=LIPBottleneckBlock,
        num_blocks=1,
        in_channels=width * 2,
        out_channels=width * 4,
        bottleneck_channels=width,
        norm="BN",
        pooling="${...stem.pooling}",
    )
    for width in (32, 64, 128)
]
train.output_dir = "./output/lip_quick"
del resnet  # a config's variables are its keys
