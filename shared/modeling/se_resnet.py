"""Squeeze-and-excitation (arXiv:1709.01507) and the bottleneck block of SE-ResNet."""

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock

from .bottleneck import BottleneckPieces

RATIO = 16  # the paper's


class SEGate(nn.Module):
    """Scale each channel by sigmoid(W2 relu(W1 mean(x))), in (0, 1) (arXiv:1709.01507, sec. 3)."""

    def __init__(self, channels: int, ratio: int = RATIO):
        """ratio: channels over the width of the bottleneck. ValueError unless it divides `channels`."""
        super().__init__()
        if ratio < 1 or channels % ratio:
            raise ValueError(f"SEGate: ratio must divide the {channels} channels, got {ratio}.")
        self.reduce = Conv2d(channels, channels // ratio, 1)
        self.expand = Conv2d(channels // ratio, channels, 1)
        for conv in (self.reduce, self.expand):
            weight_init.c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        gate = self.expand(F.relu_(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * gate.sigmoid()


class SEPieces(BottleneckPieces):
    """The residual branch passes the gate `se`, unless that is None, after its last norm, before the sum."""

    def residual(self, x: Tensor, *common: Tensor) -> Tensor:
        out = super().residual(x, *common)
        return out if self.se is None else self.se(out)


class SEBottleneckBlock(SEPieces, BottleneckBlock):
    """A bottleneck block with a gate: relu(identity(x) + se(residual(x)))."""

    def __init__(self, in_channels: int, out_channels: int, *, se_ratio: int = RATIO, **kwargs):
        """se_ratio: of `SEGate`; 0: no gate, a plain bottleneck block. kwargs: those of BottleneckBlock."""
        super().__init__(in_channels, out_channels, **kwargs)
        self.se = SEGate(out_channels, se_ratio) if se_ratio else None
