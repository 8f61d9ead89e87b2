"""A small DEPLA-ResNet on scikit-learn's handwritten digits, from nothing, on a CPU."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem, ResNet
from projects.DEPLA.resnet import DEPLABottleneckBlock

from ....configs.classification.digits_resnet import dataloader, lr_multiplier, model, optimizer, train
from .common.sites import backbone_depla

model.backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=32, norm="BN"),
    stages=[
        L(ResNet.make_stage)(
            block_class=DEPLABottleneckBlock,
            num_blocks=1,
            in_channels=in_channels,
            out_channels=width * 4,
            bottleneck_channels=width,
            stride_per_block=[stride],
            norm="BN",
            depla=backbone_depla,
        )
        for in_channels, width, stride in ((32, 16, 1), (64, 32, 2))
    ],
    out_features=["res3"],  # stride 8: 4 x 4 cells of a 32 px image
)
model.in_feature = "res3"
train.output_dir = "./output/depla_digits"
del backbone_depla  # a config's variables are its keys
