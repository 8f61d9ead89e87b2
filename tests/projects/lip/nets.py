"""Small networks for the tests of LIP."""

import torch

from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import LIPBottleneckBlock, LIPStem, lip_resnet

NARROW = {"stem_channels": 8, "res2_channels": 16}
ALL = ["res2", "res3", "res4", "res5"]


def narrow_lip_resnet(**kwargs) -> ResNet:
    """LIP-ResNet-50 with an eighth of the channels, BN and trunks of 8."""
    pooling = kwargs.pop("pooling", Pooling(width=8))
    return lip_resnet(50, **{**NARROW, "norm": "BN", "out_features": ALL, **kwargs}, pooling=pooling)


def three_blocks(num_classes: int | None = None, **pooling) -> ResNet:
    """Stem, one plain and one pooled block: the smallest network with all kinds of parts."""
    spec = Pooling(**{"width": 8, **pooling})
    stages = [
        [BottleneckBlock(8, 16, bottleneck_channels=4, norm="BN")],
        [LIPBottleneckBlock(16, 32, bottleneck_channels=8, norm="BN", pooling=spec)],
    ]
    return ResNet(LIPStem(3, 8, "BN", pooling=spec), stages, num_classes)


def images(n: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
