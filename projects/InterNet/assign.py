"""Which level of the pyramid an RoI belongs to ("Feature Intertwiner for Object Detection", ICLR 2019,
arXiv:1903.11851, Eq. (6) and Table 3). R: RoIs of the whole batch."""

import math

import torch
from torch import Tensor

from detectron2.layers import cat
from detectron2.structures import Boxes

RULES = ("eq6", "roi_size")
ROUNDINGS = ("round", "floor")
CANONICAL_LEVEL = 4  # of a box of `base` pixels


class LevelAssigner:
    """Level of each box by its side s = sqrt(area), in pixels of the network's input.

        "eq6"       level = canonical level + log2(s / base), rounded, within the pyramid
        "roi_size"  the finest level l with s <= roi_size * 2^l: one cell of the RoI's features is at most one of the
                    map's (Table 3's "by RoI size"). Larger boxes go to the coarsest level.

    The default rounds to the nearest level, unlike FPN and Detectron2, which take the floor: Table 3 lists boxes below
    and above 112 px on level 3, which a floor makes impossible. Levels are indices: 0 is level 2, whatever its stride.
    """

    def __init__(
        self,
        *,
        rule: str = "eq6",
        base: float = 224,
        rounding: str = "round",
        roi_size: int = 14,
        num_levels: int = 4,
        first_level: int = 2,
    ):
        """base: pixels, of rule "eq6"; 40 is Table 2a's "more on higher". roi_size: cells, of rule "roi_size".
        first_level: the paper's number of index 0."""
        if rule not in RULES:
            raise ValueError(f"LevelAssigner: rule is {rule!r}, choose one of {', '.join(RULES)}.")
        if rounding not in ROUNDINGS:
            raise ValueError(f"LevelAssigner: rounding is {rounding!r}, choose one of {', '.join(ROUNDINGS)}.")
        if base <= 0 or roi_size <= 0 or num_levels < 1:
            raise ValueError(
                f"LevelAssigner: base, roi_size and num_levels must be positive, got {base}, {roi_size}, {num_levels}."
            )
        self.rule, self.rounding = rule, rounding
        self.base, self.roi_size = base, roi_size
        self.num_levels, self.first_level = num_levels, first_level

    def __call__(self, boxes: list[Boxes]) -> Tensor:
        """Boxes per image, xyxy in pixels -> level indices (R,), int64, in the images' order.
        A box without area is on level 0."""
        return self.of_areas(cat([b.area() for b in boxes]))

    def of_areas(self, areas: Tensor) -> Tensor:
        """Areas (R,) in square pixels -> level indices (R,), int64."""
        areas = areas.float().nan_to_num(nan=0.0).clamp(min=0)
        if self.rule == "roi_size":
            sides = [self.roi_size * 2**level for level in range(self.first_level, self.first_level + self.num_levels)]
            thresholds = areas.new_tensor([side * side for side in sides[:-1]])
            return torch.bucketize(areas, thresholds)  # right=False: a box of exactly the threshold is on its level
        level = CANONICAL_LEVEL - math.log2(self.base) + 0.5 * torch.log2(areas)
        level = torch.floor(level + 0.5 if self.rounding == "round" else level) - self.first_level
        return level.clamp(0, self.num_levels - 1).long()
