"""Deformable convolutions, version 1 (arXiv:1703.06211) and 2 (arXiv:1811.11168), on CPU and GPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

Size = int | tuple[int, int]


class _DeformConvBase(nn.Module):
    _modulated = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool | None = None,  # None: only with modulation
        norm: nn.Module | None = None,
        activation: Callable | None = None,
    ):
        super().__init__()
        assert self._modulated or not bias, "DeformConv has no bias; use ModulatedDeformConv."
        for channels in (in_channels, out_channels):
            assert channels % groups == 0, f"{channels} channels do not split into {groups} groups."
        if not self._modulated:  # the other one keeps and prints them as they are given
            stride, padding, dilation = map(_pair, (stride, padding, dilation))
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, _pair(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deformable_groups = groups, deformable_groups
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        has_bias = self._modulated if bias is None else bias
        self.bias = nn.Parameter(torch.zeros(out_channels)) if has_bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _convolve(self, x: Tensor, **maps: Tensor) -> Tensor:
        cells = self.deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        for (name, value), expected in zip(maps.items(), (2 * cells, cells)):
            # torchvision takes the number of groups from the shape: a wrong one would pass unseen
            if value.shape[1] != expected:
                given = f"deformable_groups {self.deformable_groups}, kernel {self.kernel_size}"
                raise ValueError(f"{name} of {expected} channels expected ({given}), got {tuple(value.shape)}.")
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        x = deform_conv2d(x, weight=self.weight, bias=self.bias, **geometry, **maps)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        names = "in_channels out_channels kernel_size stride padding dilation groups deformable_groups".split()
        return ", ".join([*(f"{name}={getattr(self, name)}" for name in names), f"bias={self.bias is not None}"])


class DeformConv(_DeformConvBase):
    """Convolution whose kernel cells are shifted by `offset`; without bias."""

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """x: (N, C, H, W); offset: (N, 2 * deformable_groups * kh * kw, H', W'), in cells.
        Channels of `offset` per deformable group and kernel cell: dy, dx. N may be 0."""
        return self._convolve(x, offset=offset)


class ModulatedDeformConv(_DeformConvBase):
    """Deformable convolution that also scales every sample by `mask`; with bias unless bias=False."""

    _modulated = True

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """As DeformConv; mask: (N, deformable_groups * kh * kw, H', W'), used as it is."""
        return self._convolve(x, offset=offset, mask=mask)
