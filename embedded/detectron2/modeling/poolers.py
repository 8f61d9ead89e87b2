"""Features of boxes, each box read from the level of the pyramid that fits its size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign, cat, nonzero_tuple
from detectron2.structures import Boxes


def assign_boxes_to_levels(
    box_lists: list[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """Level of each box minus `min_level`, (R,) int64 (arXiv:1612.03144, eq. 1)."""
    sides = torch.sqrt(cat([boxes.area() for boxes in box_lists]))
    levels = torch.floor(canonical_level + torch.log2(sides / canonical_box_size + 1e-8))
    return levels.clamp(min_level, max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """Boxes per image -> (R, 5): index of the image, x0, y0, x1, y1."""
    rows = [nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(box_lists)]
    return cat(rows)


def _level_pooler(pooler_type: str, output_size, scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    if pooler_type not in ("ROIAlign", "ROIAlignV2"):
        raise ValueError(f"Unknown pooler type '{pooler_type}': use ROIAlignV2, ROIAlign or ROIPool.")
    return ROIAlign(output_size, scale, sampling_ratio, aligned=pooler_type == "ROIAlignV2")


class ROIPooler(nn.Module):
    """Pool every box to one size from one level of a feature pyramid."""

    def __init__(
        self,
        output_size: int | Sequence,
        scales: Sequence,
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            output_size: side, or (height, width), of the result.
            scales: 1 / stride per level, each half of the one before.
            sampling_ratio: samples per bin and axis; 0 chooses by the box size.
            pooler_type: "ROIAlignV2" (pixel centres at .5), "ROIAlign", "ROIPool".
            canonical_box_size: side in pixels of a box that belongs to `canonical_level`.
        """
        super().__init__()
        size = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
        assert len(size) == 2, f"output_size must be a side or (height, width), got {output_size}."
        self.output_size = tuple(size)
        self.level_poolers = nn.ModuleList(
            _level_pooler(pooler_type, self.output_size, scale, sampling_ratio) for scale in scales
        )
        levels = [-math.log2(scale) for scale in scales]
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        assert math.isclose(levels[0], self.min_level) and math.isclose(levels[-1], self.max_level), (
            f"The strides of the feature maps must be powers of 2, got scales {scales}."
        )
        assert len(levels) == self.max_level - self.min_level + 1, (
            f"The scales must halve from level to level, got {scales}."
        )
        assert self.min_level >= 0, f"The scales must be at most 1, got {scales}."
        assert canonical_level > 0, f"canonical_level must be positive, got {canonical_level}."
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Maps (N, C, Hi, Wi) per level, boxes per image -> (R, C, h, w) in the images' order."""
        assert isinstance(x, list) and isinstance(box_lists, list), (
            "ROIPooler takes a list of feature maps and a list of Boxes."
        )
        assert len(x) == len(self.level_poolers), (
            f"ROIPooler has {len(self.level_poolers)} scales, got {len(x)} feature maps."
        )
        assert len(box_lists) == x[0].size(0), (
            f"The feature maps hold {x[0].size(0)} images, got boxes of {len(box_lists)}."
        )
        if len(box_lists) == 0:
            return x[0].new_zeros(0, x[0].size(1), *self.output_size)
        boxes = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], boxes)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        output = x[0].new_zeros(len(boxes), x[0].size(1), *self.output_size)
        # A level without boxes is pooled too: its map then gets a gradient (of zeros).
        for level, pooler in enumerate(self.level_poolers):
            rows = nonzero_tuple(levels == level)[0]
            output.index_put_((rows,), pooler(x[level], boxes[rows]))
        return output
