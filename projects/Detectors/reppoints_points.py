"""Points of RepPoints (arXiv:1904.11490): the box of a set of points, and a convolution that samples at them.

P: points per location, each a pair (y, x) in cells (strides of the level) from the location. N: images, H x W: cells.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from shared.precision import no_autocast

PARTIAL_POINTS = 4


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, with `factor` times its gradient."""
    constant = x.detach()
    return constant + factor * (x - constant)


class PointsToBox(nn.Module):
    """The pseudo box of a set of points (sec. 3.2): differentiable, so that boxes supervise points.

    moment: centre at the mean, half the size exp(m) times the standard deviation, one learned m per axis.
    minmax: the tightest box around all points. partial_minmax: around the first four; the others stay free.
    Differs from the paper: the gradient of m is scaled by `moment_grad`, as in the authors' code.
    """

    METHODS = ("moment", "minmax", "partial_minmax")

    def __init__(self, method: str = "moment", moment_grad: float = 0.01):
        """ValueError: unknown method."""
        super().__init__()
        if method not in self.METHODS:
            raise ValueError(f"PointsToBox: method must be one of {', '.join(self.METHODS)}, got {method!r}.")
        self.method, self.moment_grad = method, moment_grad
        if method == "moment":
            self.moment_transfer = nn.Parameter(torch.zeros(2))  # of x, of y

    def forward(self, points: Tensor) -> Tensor:
        """points: (..., 2P). Returns boxes (..., 4) xyxy in the same unit, float32 at least."""
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        xy = points.unflatten(-1, (-1, 2)).flip(-1)  # (..., P, 2)
        if self.method == "moment":
            half = xy.std(dim=-2) * scale_gradient(self.moment_transfer, self.moment_grad).exp()
            center = xy.mean(dim=-2)
            return torch.cat([center - half, center + half], dim=-1)
        if self.method == "partial_minmax":
            xy = xy[..., :PARTIAL_POINTS, :]
        return torch.cat([xy.amin(dim=-2), xy.amax(dim=-2)], dim=-1)

    def extra_repr(self) -> str:
        return f"method={self.method}, moment_grad={self.moment_grad}"


class PointConv2d(nn.Module):
    """A square convolution, without bias, whose kernel cells lie at given points instead of on the regular grid.

    That is the deformable convolution (arXiv:1703.06211) with points - grid as its offsets. torchvision's op keeps no
    samples for the backward pass, but on a CPU this pass takes five to ten times as long as that of `grid_sample`,
    which is used there (benchmarks/point_conv.py).
    """

    def __init__(self, in_channels: int, out_channels: int, num_points: int):
        """num_points: cells of the kernel in row-major order. ValueError: not 9, 25, 49 or a larger odd square."""
        super().__init__()
        side = math.isqrt(num_points)
        if side**2 != num_points or side % 2 == 0 or side < 3:
            raise ValueError(f"num_points must be the square of 3, 5, 7, ... (cells of a kernel), got {num_points}.")
        self.padding = side // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, side, side))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        axis = torch.arange(-self.padding, self.padding + 1, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (side, side, 2): y, x
        self.register_buffer("grid", grid.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        """x: (N, C, H, W); points: (N, 2P, H, W). Returns (N, out_channels, H, W) in the dtype of x.

        Outside the map everything is 0. Computed in float32 at least: in half precision coordinates lose parts of a
        cell.
        """
        convolve = self._by_grid_sample if x.device.type == "cpu" else self._by_deform_conv
        dtype = torch.promote_types(x.dtype, torch.float32)
        with no_autocast(x):
            return convolve(x.to(dtype), points.to(dtype), self.weight.to(dtype)).to(x.dtype)

    def _by_deform_conv(self, x: Tensor, points: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x, points - self.grid, weight, padding=self.padding)

    def _by_grid_sample(self, x: Tensor, points: Tensor, weight: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        dy, dx = points.unflatten(1, (-1, 2)).unbind(dim=2)  # (N, P, H, W)
        row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + dy
        column = torch.arange(width, device=x.device, dtype=x.dtype) + dx
        # grid_sample counts from -1, the outer edge of the first cell, to 1
        where = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
        samples = F.grid_sample(x, where.flatten(1, 2), padding_mode="zeros", align_corners=False)  # (N, C, P*H, W)
        samples = samples.unflatten(2, (-1, height))
        return torch.einsum("ocp,ncphw->nohw", weight.flatten(2), samples)
