"""Feature pyramid network (arXiv:1612.03144)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import ShapeSpec

from ..convs import conv_norm
from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone


class FPN(Backbone):
    """Maps p{s} of stride 2**s and equal width, from the maps of `bottom_up`."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm="",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ):
        """in_features: names of bottom_up's maps, finest first; strides must double.
        norm: for `get_norm`; the convolutions have a bias only if it is "".
        top_block: coarser levels on top; has `num_levels` and `in_feature`, the name of its input among the maps of
        bottom_up, else of this FPN.
        fuse_type: "sum", or "avg" (half the sum), of lateral and top-down maps.
        square_pad: side in pixels to which images are padded; 0: no."""
        super().__init__()
        assert len(in_features) > 0, "FPN needs at least one in_feature."
        assert fuse_type in ("avg", "sum"), f"fuse_type must be avg or sum, got '{fuse_type}'."
        shapes = bottom_up.output_shape()
        strides = [shapes[f].stride for f in in_features]
        doubled = [strides[0] * 2**i for i in range(len(strides))]
        assert strides == doubled, f"Strides of FPN's in_features must double, got {strides}."
        self.in_features, self._fuse_type = tuple(in_features), fuse_type
        self.square_pad, self._size_divisibility = square_pad, strides[-1]
        stages = [int(math.log2(stride)) for stride in strides]
        self.lateral_convs, self.output_convs = [], []  # coarsest first
        for stage, feature in zip(stages, self.in_features):
            lateral = conv_norm(shapes[feature].channels, out_channels, 1, norm, bias=norm == "")
            output = conv_norm(out_channels, out_channels, 3, norm, bias=norm == "")
            for name, conv, convs in (("lateral", lateral, self.lateral_convs), ("output", output, self.output_convs)):
                weight_init.c2_xavier_fill(conv)
                self.add_module(f"fpn_{name}{stage}", conv)
                convs.insert(0, conv)
        self.top_block, self.bottom_up = top_block, bottom_up
        if top_block is not None:
            stages += range(stages[-1] + 1, stages[-1] + 1 + top_block.num_levels)
        self._out_features = [f"p{s}" for s in stages]
        self._out_feature_strides = {f"p{s}": 2**s for s in stages}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> {"p2": ..., "p3": ...}, finest first."""
        bottom_up = self.bottom_up(x)
        results, fused = [], None
        for name, lateral, output in zip(self.in_features[::-1], self.lateral_convs, self.output_convs):
            below = lateral(bottom_up[name])
            fused = below if fused is None else below + F.interpolate(fused, scale_factor=2.0, mode="nearest")
            fused = fused / 2 if results and self._fuse_type == "avg" else fused
            results.insert(0, output(fused))
        if self.top_block is not None:
            name = self.top_block.in_feature
            results += self.top_block(bottom_up[name] if name in bottom_up else results[self._out_features.index(name)])
        return dict(zip(self._out_features, results))


class LastLevelMaxPool(nn.Module):
    """p6 by subsampling p5, for Faster R-CNN."""

    num_levels, in_feature = 1, "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by convolutions of stride 2 (RetinaNet, arXiv:1708.02002)."""

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


def _build_fpn(cfg, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN and p6: the backbone of Faster and Mask R-CNN."""
    return _build_fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet, FPN, p6 and p7 (from res5): the backbone of RetinaNet."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
