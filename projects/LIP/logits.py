"""Logit modules: the small networks G whose exponential is LIP's importance map (arXiv:1908.04156, sec. 3.2 and 3.3).

N: images, C: channels, H x W: cells. Every module maps (N, C, H, W) to raw logits z of the same shape, one per
channel and position; the gate c * sigmoid(z) belongs to the op (`lip_pool2d(..., gate=c)`).
"""

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import Conv2d

LOGIT_INITS = ("zero_conv", "zero_gamma", "random")


def instance_norm(channels: int) -> nn.InstanceNorm2d:
    """With affine parameters and without running statistics: those of the image, also at test time.

    Not a norm of `get_norm`: freezing or synchronising it would make another operator. Raises (torch does) on maps
    of one cell.
    """
    return nn.InstanceNorm2d(channels, eps=1e-5, affine=True)


class LogitConv(Conv2d):
    """Convolution without bias that keeps the size, instance norm, and a ReLU inside a trunk."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, relu: bool = False):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=False,
            norm=instance_norm(out_channels),
            activation=nn.ReLU(inplace=True) if relu else None,
        )
        weight_init.c2_msra_fill(self)


class ProjectionLogit(LogitConv):
    """1x1 convolution C -> C and instance norm, on the map that is pooled."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1)


class SimplifiedLogit(LogitConv):
    """3x3 convolution C -> C and instance norm: in place of the stem's max pooling in the Bottleneck setting."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3)


class PlainLogit(nn.Conv2d):
    """1x1 convolution with bias and nothing else: the official README's example, of no published model."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1)
        weight_init.c2_msra_fill(self)


class BottleneckTrunk(nn.Sequential):
    """What the heads of a block share: 1x1 C -> `width` and 3x3 `width` -> `width`, each with norm and ReLU."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.add_module("conv1", LogitConv(channels, width, 1, relu=True))
        self.add_module("conv2", LogitConv(width, width, 3, relu=True))


class BottleneckHead(LogitConv):
    """1x1 convolution `width` -> C and instance norm: from a trunk's features to logits."""

    def __init__(self, width: int, channels: int):
        super().__init__(width, channels, 1)


class BottleneckLogit(nn.Module):
    """Bottleneck-`width` with a trunk of its own, as in the transitions of LIP-DenseNet."""

    def __init__(self, channels: int, width: int = 128):
        super().__init__()
        self.trunk = BottleneckTrunk(channels, width)
        self.head = BottleneckHead(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class DetailLogit(nn.Module):
    """Importance of detail-preserving pooling (arXiv:1804.04076) as a logit: log(alpha + |x - mean|^lambda).

    `mean` is that of the 3x3 neighbourhood; alpha and lambda are learned per channel, through their logarithms, from 1.
    Differs from that paper: an input position has one importance for all windows, as LIP's framework wants it, while
    there each window compares with its own centre. To be used without a gate.
    """

    def __init__(self, channels: int, eps: float = 1e-3):
        super().__init__()
        self.eps = eps
        self.log_alpha = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_exponent = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits of the same shape, float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # the square of 256 is infinite in float16
        deviation = x - F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        detail = deviation.square().add(self.eps**2).pow(self.log_exponent.exp() / 2)
        return (self.log_alpha.exp() + detail).log()


def start_at_zero(logit: nn.Module, init: str) -> None:
    """Make a new logit module's output 0, so that LIP begins as average pooling over the valid positions.

    Args:
        init: "zero_conv": the last convolution's weights are 0 (official LIP-ResNet). The norm behind it sees no
            variance and multiplies the first gradient by 1 / sqrt(eps) = 316: the start lasts one step.
            "zero_gamma": the last norm's scale is 0 instead, a smooth start (ours). "random": as it is.
    Raises:
        ValueError: another `init`; "zero_gamma" for a module without norm.
    """
    if init not in LOGIT_INITS:
        raise ValueError(f"The init of logit modules must be one of {', '.join(LOGIT_INITS)}, got {init!r}.")
    last = logit.head if isinstance(logit, BottleneckLogit) else logit
    if init == "random" or not isinstance(last, nn.Conv2d):
        return
    if init == "zero_conv":
        nn.init.zeros_(last.weight)
    elif not isinstance(last, LogitConv):
        raise ValueError(f"init 'zero_gamma' needs a norm, {type(last).__name__} has none: use 'zero_conv'.")
    else:
        nn.init.zeros_(last.norm.weight)
