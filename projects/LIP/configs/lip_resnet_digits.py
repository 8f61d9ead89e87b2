"""A small LIP-ResNet on scikit-learn's handwritten digits, from nothing, on a CPU."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import LIPBottleneckBlock, LIPStem

from ....configs.classification.digits_resnet import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(ResNet)(
    stem=L(LIPStem)(
        in_channels=3,
        out_channels=32,
        norm="BN",
        pooling=L(Pooling)(kind="lip", logit="bottleneck", width=16, gate=12.0, init="zero_conv"),
    ),
    stages=[
        L(ResNet.make_stage)(
            block_class=BottleneckBlock,
            num_blocks=1,
            in_channels=32,
            out_channels=64,
            bottleneck_channels=16,
            stride_per_block=[1],
            norm="BN",
        ),
        L(ResNet.make_stage)(
            block_class=LIPBottleneckBlock,
            num_blocks=1,
            in_channels=64,
            out_channels=128,
            bottleneck_channels=32,
            norm="BN",
            pooling="${...stem.pooling}",
        ),
    ],
    out_features=["res3"],  # stride 8: 4 x 4 cells of a 32 px image
)
model.in_feature = "res3"
train.output_dir = "./output/lip_digits"
