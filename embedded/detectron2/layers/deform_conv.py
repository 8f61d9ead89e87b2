"""Deformable convolutions, version 1 (arXiv:1703.06211) and 2 (arXiv:1811.11168).

Both run forward and backward on every device of `torchvision.ops.deform_conv2d`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

Size = int | tuple[int, int]


class _DeformConvBase(nn.Module):
    _may_have_bias = False

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
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable | None = None,
    ):
        super().__init__()
        assert not bias or self._may_have_bias, "DeformConv has no bias; use ModulatedDeformConv."
        for channels in (in_channels, out_channels):
            assert channels % groups == 0, f"{channels} channels do not split into {groups} groups."
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _check_channels(self, name: str, x: Tensor, per_cell: int) -> None:
        # torchvision takes the number of groups from the shape: a wrong one would pass unseen
        expected = per_cell * self.deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        if x.shape[1] != expected:
            raise ValueError(
                f"{type(self).__name__} takes {name} of {expected} channels ({per_cell} x "
                f"deformable_groups {self.deformable_groups} x kernel {self.kernel_size}), "
                f"got {tuple(x.shape)}."
            )

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        self._check_channels("offset", offset, 2)
        geometry = (_pair(self.stride), _pair(self.padding), _pair(self.dilation))
        x = deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        names = "in_channels out_channels kernel_size stride padding dilation groups".split()
        fields = [f"{name}={getattr(self, name)}" for name in [*names, "deformable_groups"]]
        return ", ".join([*fields, f"bias={self.bias is not None}"])


class DeformConv(_DeformConvBase):
    """Convolution whose kernel cells are shifted by `offset`; without bias."""

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """x: (N, C, H, W); offset: (N, 2 * deformable_groups * kh * kw, H', W'), in cells.

        Channels of `offset` per deformable group and kernel cell: dy, dx. N may be 0.
        """
        return self._convolve(x, offset, None)


class ModulatedDeformConv(_DeformConvBase):
    """Deformable convolution that also scales every sample by `mask`."""

    _may_have_bias = True

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
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable | None = None,
    ):
        geometry = (kernel_size, stride, padding, dilation, groups, deformable_groups)
        super().__init__(in_channels, out_channels, *geometry, bias, norm, activation)
        self.stride, self.padding, self.dilation = stride, padding, dilation  # printed as given

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """As DeformConv; mask: (N, deformable_groups * kh * kw, H', W'), used as it is."""
        self._check_channels("mask", mask, 1)
        return self._convolve(x, offset, mask)
