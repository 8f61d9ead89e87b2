"""Building blocks of convolutional networks."""

from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block with known `in_channels`, `out_channels` and `stride`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self) -> "CNNBlockBase":
        """Stop all gradients and replace every batch norm by a frozen one, in place."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)


class DepthwiseSeparableConv2d(nn.Sequential):
    """A kxk convolution per channel, then a 1x1 convolution over channels (arXiv:1704.04861). norm1, norm2: as
    `get_norm` takes them; with a norm there is no bias. activation1, activation2: callables or None."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1=None,
        activation1=None,
        norm2=None,
        activation2=None,
    ):
        super().__init__()
        first = {"norm": get_norm(norm1, in_channels), "activation": activation1, "bias": not norm1}
        last = {"norm": get_norm(norm2, out_channels), "activation": activation2, "bias": not norm2}
        window = {"kernel_size": kernel_size, "padding": padding, "dilation": dilation}
        self.depthwise = Conv2d(in_channels, in_channels, groups=in_channels, **window, **first)
        self.pointwise = Conv2d(in_channels, out_channels, kernel_size=1, **last)
        c2_msra_fill(self.depthwise)
        c2_msra_fill(self.pointwise)
