"""Generators F of "Feature Intertwiner for Object Detection" (ICLR 2019, arXiv:1903.11851), Sec. 3.3: from the map of
one level to the size, and the meaning, of the next finer one. N: images, C: channels, H x W: cells.

The paper says "two convolutional layers with small kernels" and no more. Every generator takes
    x (N, in_channels, h, w): the coarser map,
    size (H, W): of the finer map; the result has exactly this size, odd or even,
    valid: None where no image is padded, else a mask of 0 and 1 for each size, (N, 1, h, w) and (N, 1, H, W); x must
        be 0 outside its own. Inside the mask the result is then that of the image without padding.
and returns (N, out_channels, H, W), 0 outside the mask. Norms over the batch couple its images even so.
"""

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import get_norm

from .units import norm_of

Valid = tuple[Tensor, Tensor] | None


def resize(x: Tensor, size: tuple[int, int], valid: Valid = None) -> Tensor:
    """Bilinear, corners not aligned. With a mask, the padding's share of each value goes to its valid neighbours."""
    out = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    if valid is None:
        return out
    source, target = valid
    share = F.interpolate(source.to(out.dtype), size=size, mode="bilinear", align_corners=False)
    return out / share.clamp(min=1e-3) * target  # the share is 0 only outside


class ConvUpConv(nn.Module):
    """3x3 convolution, norm, ReLU at the coarser size; bilinear resizing; 3x3 convolution.

    No ReLU at the end: the maps of an FPN, which this one stands for, are signed.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN"):
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = get_norm(norm_of(norm), out_channels) or nn.Identity()
        self.refine = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        weight_init.c2_msra_fill(self.reduce)
        weight_init.c2_xavier_fill(self.refine)

    def forward(self, x: Tensor, size: tuple[int, int], valid: Valid = None) -> Tensor:
        x = F.relu(self.norm(self.reduce(x)))
        if valid is not None:
            x = x * valid[0]
        out = self.refine(resize(x, size, valid))
        return out if valid is None else out * valid[1]


class Deconv(nn.Module):
    """Transposed 3x3 convolution of stride 2, norm, ReLU: the authors' code. Never negative.

    It reaches 2h - 1 or 2h; any other size is made of the nearest of these by bilinear resizing.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN"):
        super().__init__()
        self.deconv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = get_norm(norm_of(norm), out_channels) or nn.Identity()
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)

    def forward(self, x: Tensor, size: tuple[int, int], valid: Valid = None) -> Tensor:
        reached = [min(max(want, 2 * have - 1), 2 * have) for want, have in zip(size, x.shape[-2:])]
        out = F.relu(self.norm(self.deconv(x, output_size=reached)))
        if tuple(reached) != tuple(size):
            out = resize(out, size)
        return out if valid is None else out * valid[1]


class Bilinear(nn.Module):
    """Resizing alone: Table 1's "(c) bilinear". No parameters; keeps the channels."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = ""):
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(
                f"generator 'bilinear' cannot turn {in_channels} channels into {out_channels}: "
                f"choose 'conv_up_conv' or 'deconv', or equal channels on all levels."
            )

    def forward(self, x: Tensor, size: tuple[int, int], valid: Valid = None) -> Tensor:
        return resize(x, size, valid)


GENERATORS = {"conv_up_conv": ConvUpConv, "deconv": Deconv, "bilinear": Bilinear}
