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
    return cat([nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(box_lists)])


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
        """output_size: side, or (height, width), of the result. scales: 1 / stride per level.
        sampling_ratio: samples per bin and axis; 0 chooses by the box size.
        pooler_type: "ROIAlignV2" (pixel centres at .5), "ROIAlign", "ROIPool".
        canonical_box_size: side in pixels of a box that belongs to `canonical_level`."""
        super().__init__()
        self.output_size = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
        assert len(self.output_size) == 2, f"output_size must be a side or (height, width), got {output_size}."
        self.level_poolers = nn.ModuleList(
            _level_pooler(pooler_type, self.output_size, scale, sampling_ratio) for scale in scales
        )
        levels = [-math.log2(scale) for scale in scales]
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        halved = self.min_level >= 0 and levels == list(range(self.min_level, self.max_level + 1))
        assert halved, f"The scales must be at most 1, powers of 2, and must halve from level to level, got {scales}."
        self.canonical_box_size, self.canonical_level = canonical_box_size, canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Maps (N, C, Hi, Wi) per level, boxes per image -> (R, C, h, w) in the images' order."""
        lists = isinstance(x, list) and isinstance(box_lists, list)
        assert lists, "ROIPooler takes a list of feature maps and a list of Boxes."
        num_images, num_levels = x[0].size(0), len(self.level_poolers)
        assert len(x) == num_levels, f"ROIPooler has {num_levels} scales, got {len(x)} feature maps."
        assert len(box_lists) == num_images, f"The maps hold {num_images} images, got boxes of {len(box_lists)}."
        if len(box_lists) == 0:
            return x[0].new_zeros(0, x[0].size(1), *self.output_size)
        boxes = convert_boxes_to_pooler_format(box_lists)
        if num_levels == 1:
            return self.level_poolers[0](x[0], boxes)
        limits = self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        levels = assign_boxes_to_levels(box_lists, *limits)
        output = x[0].new_zeros(len(boxes), x[0].size(1), *self.output_size)
        # A level without boxes is pooled too: its map then gets a gradient (of zeros).
        for level, pooler in enumerate(self.level_poolers):
            rows = nonzero_tuple(levels == level)[0]
            output.index_put_((rows,), pooler(x[level], boxes[rows]))
        return output
