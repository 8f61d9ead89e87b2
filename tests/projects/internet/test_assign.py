"""Levels of boxes."""

import pytest
import torch

from detectron2.structures import Boxes
from projects.InterNet import LevelAssigner


def levels(sides, **rule):
    boxes = [Boxes(torch.tensor([[5.0, 7.0, 5.0 + s, 7.0 + s] for s in sides]))]
    return LevelAssigner(**rule)(boxes).tolist()


def around(bounds):
    return [side for bound in bounds for side in (bound - 0.01, bound + 0.01)]


# 224 * 2^(-1.5) = 79.196, each next twice that; with 40 instead of 224: 14.142; without the half: 224 / 2 = 112
@pytest.mark.parametrize(
    "rule, bounds",
    [
        ({}, (79.196, 158.392, 316.784)),
        ({"base": 40}, (14.142, 28.284, 56.569)),
        ({"rounding": "floor"}, (112, 224, 448)),
        ({"rule": "roi_size"}, (56, 112, 224)),
        ({"rule": "roi_size", "roi_size": 7}, (28, 56, 112)),
    ],
)
def test_boundaries(rule, bounds):
    assert levels(around(bounds), **rule) == [0, 1, 1, 2, 2, 3]


def test_roi_size_includes_its_threshold_and_ends_on_the_last_level():
    """14 cells of stride 4 are 56 px; boxes above level 5's 448 px stay on it."""
    assert levels([56, 112, 224, 448, 449, 5000], rule="roi_size") == [0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("rule", ["eq6", "roi_size"])
def test_no_area_is_the_finest_level_and_huge_the_coarsest(rule):
    boxes = torch.tensor([[3.0, 3, 3, 9], [9.0, 3, 3, 9], [float("nan"), 0, 1, 1], [0, 0, 1e9, 1e9]])
    assert LevelAssigner(rule=rule)([Boxes(boxes)]).tolist() == [0, 0, 0, 3]


def test_area_counts_not_the_sides_and_images_are_concatenated():
    """40 x 160 has the area of 80 x 80: level 3. Rows follow the images' order."""
    wide, small = torch.tensor([[0.0, 0, 160, 40]]), torch.tensor([[0.0, 0, 20, 20]])
    result = LevelAssigner()([Boxes(wide), Boxes(small), Boxes(wide.new_zeros(0, 4)), Boxes(wide)])
    assert result.tolist() == [1, 0, 1] and result.dtype == torch.int64


def test_rounds_as_table_3_needs():
    """Level 3 holds boxes below and above 112 px, the threshold of its RoIs: a floor would start there."""
    assert levels([100, 130]) == [1, 1]
    assert levels([100, 130], rounding="floor") == [0, 1]


@pytest.mark.parametrize(
    "arguments, message",
    [({"rule": "eq1"}, "rule is 'eq1'"), ({"rounding": "up"}, "rounding is 'up'"), ({"base": 0}, "must be positive")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        LevelAssigner(**arguments)
