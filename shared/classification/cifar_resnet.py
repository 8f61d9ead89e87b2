"""ResNets for images of 32 pixels (arXiv:1512.03385, sec. 4.2): 16, 32 and 64 channels, 6n + 2 layers."""

from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock


class CifarStem(CNNBlockBase):
    """3x3 convolution, norm and ReLU; no pooling, stride 1."""

    def __init__(self, in_channels: int = 3, out_channels: int = 16, norm: str = "BN"):
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels, out_channels, kernel_size=3, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        return F.relu_(self.conv1(x))


class ZeroPadShortcut(nn.Module):
    """Every stride-th cell, and zeros as the channels that are new: "option A", without parameters."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class CifarBlock(BasicBlock):
    """Detectron2's basic block with option A where its channels change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN"):
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        if self.shortcut is not None:
            self.shortcut = ZeroPadShortcut(out_channels - in_channels, stride)


def cifar_resnet(
    depth: int, *, in_channels: int = 3, norm: str = "BN", out_features: Sequence[str] = ("res4",), freeze_at: int = 0
) -> ResNet:
    """Detectron2's ResNet with stages res2, res3 and res4: 16, 32, 64 channels at strides 1, 2, 4.

    Args:
        depth: 6n + 2, n blocks a stage: 20, 32, 44, 56, 110 in the paper.
        freeze_at: as `ResNet`'s.
    Raises:
        ValueError: any other depth.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise ValueError(f"cifar_resnet: depth must be 6n + 2 (8, 14, 20, 26, ...), got {depth}.")
    stages = [
        ResNet.make_stage(
            CifarBlock, n, in_channels=c_in, out_channels=c_out, stride_per_block=[stride] + [1] * (n - 1), norm=norm
        )
        for c_in, c_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    ]
    return ResNet(CifarStem(in_channels, 16, norm), stages, out_features=list(out_features), freeze_at=freeze_at)


@BACKBONE_REGISTRY.register()
def build_cifar_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """`cifar_resnet` from MODEL.RESNETS' DEPTH, NORM and OUT_FEATURES, and MODEL.BACKBONE.FREEZE_AT."""
    r = cfg.MODEL.RESNETS
    return cifar_resnet(
        r.DEPTH,
        in_channels=input_shape.channels,
        norm=r.NORM,
        out_features=r.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
