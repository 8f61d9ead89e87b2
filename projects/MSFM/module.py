"""MSFM: multi-scale fusion module (ICLR 2021 submission 6IVdytR2W90, sec. 3.1 and Figure 1a).

    M(x) = x + U(C(F_1(S(x)), ..., F_n(S(x))))
    F_i(a) = R_i^-1(CGN_i,k(... CGN_i,1(R_i(a))))

Shapes: x (N, C, H, W); t = C / ratio channels of the thin maps; branch i of scale s_i works at (floor(H s_i),
floor(W s_i)), at least 1. G groups in every group norm.

    S    1x1 convolution C -> t, group norm, ReLU          R_i, R_i^-1   bilinear resizing, to and fro
    CGN  3x3 convolution t -> t, group norm, ReLU          C             sum (t channels) or concatenation (n t)
    U    1x1 convolution t or n t -> C, group norm

Every convolution has a bias, and branches share no weights: the paper's parameter counts ask for both. They leave open
whether S has bias and norm or one of them, and the norm of U (group norm here; G as elsewhere).
"""

import math

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import Conv2d

from .folding import add_folded
from .spec import MSFMSpec


class SafeGroupNorm(nn.GroupNorm):
    """Group norm that also takes groups of a single value: their deviation is 0, so the result is the bias.

    torch's refuses them for one image, though not for two. They come with t = G where a branch is 1 x 1: on images of
    up to 96 pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        if x.shape[1] // self.num_groups * x.shape[2] * x.shape[3] == 1:
            return (x - x) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return super().forward(x)


def thin_width(channels: int, ratio: int, norm_groups: int, place: str) -> int:
    """t = channels / ratio. ValueError, naming `place`: no such t, or channels that G groups do not divide."""
    if ratio < 1 or channels % ratio:
        raise ValueError(
            f"{place}: its {channels} channels cannot be squeezed by a ratio of {ratio}: change the entry of ratios."
        )
    thin = channels // ratio
    if norm_groups < 1 or thin % norm_groups or channels % norm_groups:
        raise ValueError(
            f"{place}: G={norm_groups} groups must divide both t={channels}/{ratio}={thin} and C={channels}: change "
            f"the position's entry of norm_groups or the stage's of ratios."
        )
    return thin


def scaled(side: int, scale: float) -> int:
    """Side of a branch's map. The small number saves products such as 90 * 0.7, which is below 63 in binary."""
    return max(1, math.floor(side * scale + 1e-6))


class MSFM(nn.Module):
    """One module. See the file's docstring."""

    def __init__(
        self, channels: int, *, ratio: int, norm_groups: int, spec: MSFMSpec = MSFMSpec(), place: str = "MSFM"
    ):
        """channels: C. norm_groups: G. Of `spec` the module reads what is not about places. place: for messages.

        ValueError: C, ratio and G do not go together.
        """
        super().__init__()
        thin = thin_width(channels, ratio, norm_groups, place)
        self.spec = spec

        def unit(in_channels, out_channels, kernel_size, bias=True, norm=True, activation=F.relu_):
            conv = Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=bias,
                norm=SafeGroupNorm(norm_groups, out_channels) if norm else None,
                activation=activation,
            )
            weight_init.c2_msra_fill(conv)
            return conv

        self.squeeze = unit(channels, thin, 1, spec.squeeze_bias, spec.squeeze_norm)
        self.branches = nn.ModuleList(
            nn.Sequential(*(unit(thin, thin, 3) for _ in range(spec.convs_at(scale)))) for scale in spec.scales
        )
        fused = thin * len(spec.scales) if spec.fusion == "cat" else thin
        self.unsqueeze = unit(fused, channels, 1, activation=F.relu_ if spec.out_relu else None)
        if spec.zero_init:
            nn.init.zeros_(self.unsqueeze.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype."""
        y = self.fuse(self.squeeze(x))
        if self.spec.impl == "folded":
            return add_folded(x, y, self.unsqueeze)
        return x + self.unsqueeze(y).to(x.dtype)

    def fuse(self, a: Tensor) -> Tensor:
        """C of the branches' results: (N, t, H, W) -> the same, or (N, n t, H, W) where they are concatenated."""
        size = a.shape[-2:]
        maps = []
        for scale, branch in zip(self.spec.scales, self.branches):
            resized = self._resize(a, (scaled(size[0], scale), scaled(size[1], scale)))
            maps.append(self._resize(branch(resized), size))
        if self.spec.fusion == "cat":
            return torch.cat(maps, dim=1)
        if len(maps) == 1:
            return maps[0]
        total = maps[0] + maps[1]  # a map of its own: what is added in place below is in no one's backward
        for other in maps[2:]:
            total += other
        return total

    def _resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(x.shape[-2:]) == tuple(size):
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.spec.align_corners)

    def extra_repr(self) -> str:
        s = self.spec
        return f"scales={s.scales}, fusion={s.fusion}, align_corners={s.align_corners}, impl={s.impl}"
