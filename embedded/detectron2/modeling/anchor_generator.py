"""Anchors: boxes of fixed sizes and aspect ratios around every cell of every feature map."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")


def _per_level(params: Sequence, num_levels: int, name: str) -> list[list[float]]:
    """One list per level, from one list per level or one list for all."""
    assert len(params) > 0, f"{name} of the anchor generator is empty: give at least one number."
    params = params if isinstance(params[0], Sequence) else [params]
    params = list(params) * num_levels if len(params) == 1 else params
    assert len(params) == num_levels, f"{name} of the anchors has {len(params)} lists for {num_levels} feature levels."
    return params


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Every size with every aspect ratio at every cell (arXiv:1506.01497)."""

    box_dim: int = 4

    @configurable
    def __init__(self, *, sizes: Sequence, aspect_ratios: Sequence, strides: Sequence, offset: float = 0.5):
        """sizes: square roots of the anchors' areas in pixels, a list per level or one for all.
        aspect_ratios: height / width, likewise. strides: pixels per cell, per level.
        offset: centre of the first anchor in cells, within [0, 1)."""
        super().__init__()
        assert 0.0 <= offset < 1.0, f"The anchors' offset must lie in [0, 1), got {offset}."
        self.strides, self.num_features, self.offset = list(strides), len(strides), offset
        sizes = _per_level(sizes, self.num_features, "sizes")
        aspect_ratios = _per_level(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = nn.Module()  # holds buffers "0", "1", ...; no checkpoint has them
        for level, params in enumerate(zip(sizes, aspect_ratios)):
            self.cell_anchors.register_buffer(str(level), self.generate_cell_anchors(*params), persistent=False)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        c, strides = cfg.MODEL.ANCHOR_GENERATOR, [x.stride for x in input_shape]
        return {"sizes": c.SIZES, "aspect_ratios": c.ASPECT_RATIOS, "strides": strides, "offset": c.OFFSET}

    @property
    def num_cell_anchors(self) -> list[int]:
        """Anchors per cell, per level."""
        return [len(a) for a in self.cell_anchors.buffers()]

    num_anchors = num_cell_anchors

    def generate_cell_anchors(self, sizes: Sequence, aspect_ratios: Sequence) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) boxes centred on 0, sizes outermost."""
        anchors = []
        for size, ratio in itertools.product(sizes, aspect_ratios):
            w = math.sqrt(size**2 / ratio)
            h = ratio * w
            anchors.append([-w / 2, -h / 2, w / 2, h / 2])
        return torch.tensor(anchors)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """(N, C, H, W) maps -> per level H*W*A boxes, ordered by row, column, cell anchor."""
        anchors = []
        for x, stride, cell in zip(features, self.strides, self.cell_anchors.buffers()):
            like = {"dtype": torch.float32, "device": x.device}
            axes = (torch.arange(self.offset * stride, n * stride, stride, **like) for n in x.shape[-2:])
            y, x = torch.meshgrid(*axes, indexing="ij")
            anchors.append(Boxes((torch.stack([x, y, x, y], dim=-1).unsqueeze(2) + cell).reshape(-1, 4)))
        return anchors


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """The registered generator `cfg.MODEL.ANCHOR_GENERATOR.NAME`."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
