"""Which locations learn which ground truth, against loops over all of them."""

import pytest
import torch

from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes
from projects.Detectors.reppoints_assign import assign_centers, match_boxes
from tests.projects.detectors.reppoints_parts import slow_assign

STRIDES = (8, 16, 32)
SHAPES = ((12, 16), (6, 8), (3, 4))  # of 96 x 128 pixels
FIRST = (0, 192, 240)  # location of each level


def assign(boxes, shapes=SHAPES, strides=STRIDES, **kwargs):
    """{location: ground truth}"""
    index = assign_centers(Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)), shapes, strides, **kwargs)
    assert index.shape == (sum(h * w for h, w in shapes),) and index.dtype == torch.int64
    return {i: g for i, g in enumerate(index.tolist()) if g >= 0}


def at(level, x, y):
    return FIRST[level] + y * SHAPES[level][1] + x


def around(x, y, w, h):
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


@pytest.mark.parametrize(
    "w, h, level",
    [
        (4, 4, 0),  # log2(1) = 0: the finest there is
        (32, 32, 0),  # log2(8) = 3: stride 8
        (63, 63, 0),  # 3.98, rounded down
        (64, 64, 1),
        (16, 256, 1),  # (log2(4) + log2(64)) / 2 = 4
        (128, 128, 2),
        (900, 900, 2),  # 7.8: the coarsest there is
    ],
)
def test_level_by_size(w, h, level):
    # the nearest of (40, 40) is (5, 5) of stride 8; of stride 16 a tie of 2 and 3, the lower; 1 of 32
    assert assign([around(40, 40, w, h)]) == {at(level, *[(5, 5), (2, 2), (1, 1)][level]): 0}
    assert slow_assign([around(40, 40, w, h)], SHAPES, STRIDES) == {at(level, *[(5, 5), (2, 2), (1, 1)][level]): 0}


def test_point_scale_is_the_side_in_strides():
    box = [around(41, 41, 64, 64)]
    assert assign(box, point_scale=8.0) == {at(0, 5, 5): 0}
    assert assign(box, point_scale=2.0) == {at(2, 1, 1): 0}


def test_contested_location_goes_to_the_nearer_and_the_other_has_none():
    far, near = around(43, 40, 30, 30), around(41, 40, 30, 30)
    assert assign([far, near]) == {at(0, 5, 5): 1}
    assert assign([near, far]) == {at(0, 5, 5): 0}
    # in units of the sides: 3 / 40 is nearer than 1 / 10
    assert assign([around(41, 40, 10, 20), around(43, 40, 40, 20)]) == {at(0, 5, 5): 1}
    # other levels do not compete
    assert assign([near, around(33, 33, 64, 64)]) == {at(0, 5, 5): 0, at(1, 2, 2): 1}
    # equal distances: the first
    assert assign([around(42, 40, 20, 20), around(38, 40, 20, 20)]) == {at(0, 5, 5): 0}


def test_centres_beyond_the_last_location():
    """A map of 12 x 16 ends at (120, 88), the image 8 pixels later."""
    assert assign([around(127, 95, 20, 20)]) == {at(0, 15, 11): 0}
    assert assign([around(1, 95, 20, 20)]) == {at(0, 0, 11): 0}


def random_boxes(n, seed):
    g = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.rand(n, 2, generator=g) * 4.2 + 1.4)
    corner = torch.rand(n, 2, generator=g) * (torch.tensor([128.0, 96.0]) - size).clamp(min=1)
    return torch.cat([corner, corner + size], dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_equals_slow_loops(seed):
    boxes = random_boxes(120, seed)
    found = assign(boxes)
    assert found == slow_assign(boxes.tolist(), SHAPES, STRIDES)
    assert 60 < len(found) < 115  # contested ones among them
    assert all(any(first <= i < first + h * w for i in found) for first, (h, w) in zip(FIRST, SHAPES))


def test_order_and_reflections_of_the_ground_truth():
    boxes = random_boxes(60, 7)
    found = assign(boxes)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert {i: order[g].item() for i, g in assign(boxes[order]).items()} == found
    # about the middle of the columns of each level in turn: 7.5 * 8 = 60, 3.5 * 16 = 56, 1.5 * 32 = 48
    for level, middle in enumerate((60, 56, 48)):
        mirrored = boxes.clone()
        mirrored[:, 0::2] = 2 * middle - boxes[:, [2, 0]]
        (h, w), first = SHAPES[level], FIRST[level]
        there = range(first, first + h * w)
        expected = {i: g for i, g in found.items() if i in there}
        result = {i: g for i, g in assign(mirrored).items() if i in there}
        result = {first + (i - first) // w * w + w - 1 - (i - first) % w: g for i, g in result.items()}
        assert result == expected and expected


def test_no_ground_truth_and_a_degenerate_one():
    assert assign([]) == {}
    assert assign([[40, 40, 40, 40], [80, 16, 80, 30]]) == {at(0, 5, 5): 0, at(0, 10, 3): 1}  # 23 / 8 = 2.9


MATCHER = Matcher([0.4, 0.5], [0, -1, 1], True)


def match(gt, boxes, matcher=MATCHER):
    index, labels = match_boxes(matcher, *(Boxes(torch.tensor(x).float().reshape(-1, 4)) for x in (gt, boxes)))
    assert index.dtype == torch.int64
    return index.tolist(), labels.tolist()


def test_thresholds_and_low_quality_matches():
    gt = [[0, 0, 10, 10], [100, 0, 110, 10]]
    boxes = [
        [0, 0, 10, 6],  # 0.6: object
        [0, 0, 10, 4.5],  # 0.45: ignored
        [0, 0, 10, 3],  # 0.3: background
        [100, 0, 110, 2],  # 0.2, yet the best of the second
        [50, 50, 60, 60],  # nothing
    ]
    index, labels = match(gt, boxes)
    assert labels == [1, -1, 0, 1, 0] and index[:4] == [0, 0, 0, 1]


def test_ground_truth_that_no_box_meets_has_no_match():
    """Detectron2's matcher alone: the best of a row of zeros is every location."""
    gt, boxes = [[200, 200, 210, 210], [0, 0, 10, 10]], [[0, 0, 10, 6], [0, 0, 10, 3], [50, 50, 60, 60]]
    assert match(gt, boxes)[1] == [1, 0, 0]
    assert match(gt, boxes)[0][:2] == [1, 1]  # counted among all, not among those met
    plain = MATCHER(torch.tensor([[0.0, 0, 0], [0.6, 0.3, 0]]))[1]
    assert plain.tolist() == [1, 1, 1]
    assert match(gt[:1], boxes)[1] == [0, 0, 0]
    assert match([], boxes)[1] == [0, 0, 0]
