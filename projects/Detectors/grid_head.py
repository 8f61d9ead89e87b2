"""The grid head of Grid R-CNN (arXiv:1811.12030, sec. 3.1 and 3.2; widths of Grid R-CNN Plus, arXiv:1906.05688).
R: RoIs, P = n * n points (see grid_points), C: channels of a point, S: side of the pooled RoI, M = 2S."""

import math
from itertools import product

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec

from .grid_points import grid_targets

PRIOR = 0.01  # probability of a positive cell at the start


def neighbour_edges(grid_size: int) -> tuple[list[int], list[int]]:
    """Sources and targets of the directed edges between points one step apart, 24 for n = 3; by target."""
    places = list(product(range(grid_size), repeat=2))
    pairs = product(enumerate(places), enumerate(places))
    edges = [(i, j) for (j, b), (i, a) in pairs if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1]
    sources, targets = zip(*edges)
    return list(sources), list(targets)


class PointFusion(nn.Module):
    """One order of the fusion of neighbouring points (eq. 4, 5): y_i = x_i + sum over edges j -> i of T_ji(message_j).

    T: a depthwise 5x5 and a 1x1 convolution, its own on every edge. All E of them are one depthwise convolution and
    one of E groups on the gathered maps.
    """

    def __init__(self, grid_size: int, channels: int):
        super().__init__()
        sources, targets = neighbour_edges(grid_size)
        self.register_buffer("sources", torch.tensor(sources), persistent=False)
        self.register_buffer("targets", torch.tensor(targets), persistent=False)
        self.num_points, self.channels, edges = grid_size**2, channels, len(sources)
        self.depthwise = nn.Conv2d(edges * channels, edges * channels, 5, padding=2, groups=edges * channels)
        self.pointwise = nn.Conv2d(edges * channels, edges * channels, 1, groups=edges)
        for conv in (self.depthwise, self.pointwise):
            for weight in conv.weight.detach().chunk(edges):  # each edge as the convolution that it is
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, messages: Tensor) -> Tensor:
        """x, messages: (R, P * C, H, W), R at least 1. Returns (R, P * C, H, W) in the dtype of x."""
        points = (self.num_points, self.channels)
        sent = messages.unflatten(1, points)[:, self.sources].flatten(1, 2)
        sent = self.pointwise(self.depthwise(sent)).unflatten(1, (-1, self.channels))
        return x.unflatten(1, points).index_add(1, self.targets, sent.to(x.dtype)).flatten(1, 2)


def _check_sizes(
    input_shape: ShapeSpec, num_points: int, num_convs: int, point_channels: int, norm_groups: int
) -> tuple[int, int]:
    """n, and the channels of all points together. Raises GridHead's ValueErrors."""
    grid_size, width = math.isqrt(num_points), num_points * point_channels
    if grid_size < 2 or grid_size**2 != num_points:
        raise ValueError(f"GridHead: num_points (NUM_POINTS) must be 4, 9, 16, ..., got {num_points}.")
    if num_convs < 1 or width % norm_groups:
        raise ValueError(
            f"GridHead: num_convs (NUM_CONVS) must be at least 1, got {num_convs}, and norm_groups (NORM_GROUPS) "
            f"divide num_points * point_channels, got {norm_groups} and {width}."
        )
    if not input_shape.height or input_shape.height != input_shape.width or input_shape.height % 2:
        raise ValueError(
            f"GridHead: RoIs are pooled to {input_shape.height} x {input_shape.width}; give a square of even side "
            f"(MODEL.ROI_GRID_HEAD.POOLER_RESOLUTION)."
        )
    return grid_size, width


class GridHead(nn.Module):
    """Heatmaps of n x n points of each RoI: convolutions with group norm, two orders of fusion, two deconvolutions.

    The first convolution halves the map and the deconvolutions double it twice. In training the deconvolutions also
    read the features before fusion, for a second loss.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        num_points: int = 9,
        num_convs: int = 8,
        point_channels: int = 64,
        norm_groups: int = 36,
        pos_radius: int = 1,
        loss_weight: float = 15.0,
    ):
        """input_shape: channels and the even side S of the pooled RoI. pos_radius: in cells, of a point's positives.
        loss_weight: of either heatmap's loss. ValueError where they do not fit together."""
        super().__init__()
        self.grid_size, width = _check_sizes(input_shape, num_points, num_convs, point_channels, norm_groups)
        self.map_size, self.pos_radius, self.loss_weight = 2 * input_shape.height, pos_radius, loss_weight
        channels = [input_shape.channels] + [width] * num_convs
        self.convs = nn.Sequential(
            *(
                Conv2d(
                    channels[k],
                    width,
                    kernel_size=3,
                    stride=1 if k else 2,
                    padding=1,
                    norm=nn.GroupNorm(norm_groups, width),
                    activation=nn.ReLU(inplace=True),
                )
                for k in range(num_convs)
            )
        )
        self.fusion1 = PointFusion(self.grid_size, point_channels)
        self.fusion2 = PointFusion(self.grid_size, point_channels)
        self.deconv1 = ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1, groups=num_points)
        self.norm = nn.GroupNorm(num_points, width)
        self.deconv2 = ConvTranspose2d(width, num_points, kernel_size=4, stride=2, padding=1, groups=num_points)
        for conv in self.convs:
            weight_init.c2_msra_fill(conv)
        for deconv, bias in ((self.deconv1, 0.0), (self.deconv2, -math.log((1 - PRIOR) / PRIOR))):
            nn.init.normal_(deconv.weight, std=0.001)
            nn.init.constant_(deconv.bias, bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        keys = ("NUM_POINTS", "NUM_CONVS", "POINT_CHANNELS", "NORM_GROUPS", "POS_RADIUS", "LOSS_WEIGHT")
        return {"input_shape": input_shape, **{key.lower(): cfg.MODEL.ROI_GRID_HEAD[key] for key in keys}}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: pooled (R, C_in, S, S), R at least 1. Returns logits (R, P, M, M) of the
        fused features and, in training, those of the features before fusion."""
        x = self.convs(x)
        fused = self.fusion2(x, self.fusion1(x, x))
        return self._heatmaps(fused), self._heatmaps(x) if self.training else None

    def _heatmaps(self, x: Tensor) -> Tensor:
        return self.deconv2(F.relu(self.norm(self.deconv1(x))))

    def losses(self, pooled: Tensor, rois: Tensor, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy, mean over all cells, of both heatmaps; zeros that reach every parameter if R is 0.

        pooled: (R, C_in, S, S); rois, gt_boxes: (R, 4), xyxy in pixels, a ground truth for each RoI.
        """
        if len(rois) == 0:
            zero = sum(p.sum() for p in self.parameters()) * 0.0 + pooled.sum() * 0.0
            return {"loss_grid": zero, "loss_grid_unfused": zero}
        fused, unfused = self(pooled)
        with torch.no_grad():
            targets = grid_targets(rois, gt_boxes, self.grid_size, self.map_size, self.pos_radius).to(fused.dtype)
        named = {"loss_grid": fused, "loss_grid_unfused": unfused}
        return {k: self.loss_weight * F.binary_cross_entropy_with_logits(v, targets) for k, v in named.items()}
