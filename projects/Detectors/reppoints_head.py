"""The head of RPDet, the detector of RepPoints (arXiv:1904.11490, sec. 4). N: images, C: channels, P: points
per location, K: classes, Hi x Wi: cells of level i."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, get_norm

from .reppoints_points import PointConv2d, PointsToBox, scale_gradient


class RepPointsHead(nn.Module):
    """Two towers shared by all levels. One predicts the first points; convolutions that sample at these then classify,
    and correct the points.

    The corrected points are a constant offset from the first ones: their loss trains the correction alone. Through the
    sampling, class and correction losses reach the first points with `init_grad` of their gradient, as in the authors'
    code.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        num_points: int = 9,
        num_convs: int = 3,
        norm: str = "",
        prior_prob: float = 0.01,
        init_grad: float = 0.1,
        points_to_box: str = "moment",
        moment_grad: float = 0.01,
    ):
        """in_channels: of every level, and of every layer. num_convs: 3x3 convolutions per tower.
        norm: "" or "GN", of the towers. prior_prob: probability of every class at the start, through the bias.
        points_to_box, moment_grad: see `PointsToBox`.

        ValueError: num_points is no odd square from 9; unknown norm or points_to_box.
        """
        super().__init__()
        if norm not in ("", "GN"):
            raise ValueError(f"RepPointsHead: norm must be '' or 'GN', for layers that see every level, got {norm!r}.")
        self.init_grad = init_grad
        self.cls_tower = _tower(in_channels, num_convs, norm)
        self.reg_tower = _tower(in_channels, num_convs, norm)
        self.pts_init = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1), nn.ReLU(), nn.Conv2d(in_channels, 2 * num_points, 1)
        )
        self.cls_conv = PointConv2d(in_channels, in_channels, num_points)
        self.cls_score = nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, num_classes, 1))
        self.refine_conv = PointConv2d(in_channels, in_channels, num_points)
        self.pts_refine = nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, 2 * num_points, 1))
        self.points_to_box = PointsToBox(points_to_box, moment_grad)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, PointConv2d)):
                nn.init.normal_(layer.weight, std=0.01)
                if getattr(layer, "bias", None) is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_score[-1].bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        node = cfg.MODEL.REPPOINTS
        keys = ("NUM_POINTS", "NUM_CONVS", "NORM", "PRIOR_PROB", "INIT_GRAD", "POINTS_TO_BOX")
        return {
            "in_channels": input_shape[0].channels,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            **{key.lower(): node[key] for key in keys},
            "moment_grad": node.MOMENT_GRAD,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps (N, C, Hi, Wi) -> class logits (N, K, Hi, Wi), first and refined points (N, 2P, Hi, Wi), these
        in float32 at least."""
        levels = [self._level(x) for x in features]
        return tuple(list(maps) for maps in zip(*levels))

    def _level(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cls_map, reg_map = self.cls_tower(x), self.reg_tower(x)
        init = self.pts_init(reg_map)
        init = init.to(torch.promote_types(init.dtype, torch.float32))  # coordinates, also under autocast
        points = scale_gradient(init, self.init_grad)
        logits = self.cls_score(self.cls_conv(cls_map, points))
        refine = self.pts_refine(self.refine_conv(reg_map, points))
        return logits, init, refine + init.detach()


def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=not norm))
        if norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
