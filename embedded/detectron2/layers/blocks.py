"""Building blocks of convolutional networks."""

from collections.abc import Callable

from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block with known `in_channels`, `out_channels` and `stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop all gradients and replace every batch norm by a frozen one, in place."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)


class DepthwiseSeparableConv2d(nn.Module):
    """A kxk convolution per channel, then a 1x1 convolution over channels (arXiv:1704.04861)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: str | Callable | None = None,
        activation1: Callable | None = None,
        norm2: str | Callable | None = None,
        activation2: Callable | None = None,
    ):
        super().__init__()
        first = {"norm": get_norm(norm1, in_channels), "activation": activation1, "bias": not norm1}
        last = {"norm": get_norm(norm2, out_channels), "activation": activation2, "bias": not norm2}
        window = {"kernel_size": kernel_size, "padding": padding, "dilation": dilation}
        self.depthwise = Conv2d(in_channels, in_channels, groups=in_channels, **window, **first)
        self.pointwise = Conv2d(in_channels, out_channels, kernel_size=1, **last)
        c2_msra_fill(self.depthwise)
        c2_msra_fill(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
