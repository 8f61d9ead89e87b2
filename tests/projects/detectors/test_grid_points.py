"""Targets and decoding of the grid points."""

import math

import pytest
import torch

from projects.Detectors.grid_points import decode_boxes, grid_targets, jitter_boxes, point_axes, window_starts


def make_boxes(num, seed=0):
    """RoIs of 8 to 90 px and a ground truth near each."""
    rng = torch.Generator().manual_seed(seed)
    corners, sides = torch.rand(num, 2, generator=rng) * 60, 8 + 82 * torch.rand(num, 2, generator=rng)
    rois = torch.cat([corners, corners + sides], dim=1).double()
    moves = (torch.rand(num, 4, generator=rng).double() - 0.5) * 0.6 * torch.cat([sides, sides], dim=1)
    return rois, rois + moves


def targets_loop(roi, gt, n, side, radius):
    """One RoI's heatmaps, cell by cell, as the papers describe them."""
    x1, y1, x2, y2 = roi
    w, h = x2 - x1, y2 - y1
    maps = torch.zeros(n * n, side, side, dtype=torch.float64)
    if 2 * w <= 3 or 2 * h <= 3:
        return maps
    for ix in range(n):
        for iy in range(n):
            point_x = gt[0] + (gt[2] - gt[0]) * ix / (n - 1)
            point_y = gt[1] + (gt[3] - gt[1]) * iy / (n - 1)
            cx = int((point_x - (x1 - w / 2)) / (2 * w) * (2 * side))
            cy = int((point_y - (y1 - h / 2)) / (2 * h) * (2 * side))
            for row in range(side):
                for col in range(side):
                    dx = col + side * ix // (n - 1) - cx
                    dy = row + side * iy // (n - 1) - cy
                    maps[n * ix + iy, row, col] = dx * dx + dy * dy <= radius * radius
    return maps


@pytest.mark.parametrize("n, side, radius", [(3, 28, 1), (3, 12, 2), (2, 10, 1), (5, 8, 0)])
def test_targets_equal_a_loop(n, side, radius):
    rois, gt = make_boxes(5)
    rois[3, 0], rois[3, 2] = 16.0, 17.5  # widened to 3 px: no targets
    gt[4] += 500  # every point outside
    targets = grid_targets(rois, gt, n, side, radius)
    wanted = torch.stack([targets_loop(r.tolist(), g.tolist(), n, side, radius) for r, g in zip(rois, gt)])
    assert torch.equal(targets, wanted)
    assert wanted[:3].amax(dim=(2, 3)).all() and not wanted[3:].any()


def test_targets_by_hand():
    """A RoI of 56 px from (28, 28) covers (0, 0, 112, 112) with 56 x 56 cells of 2 px; windows begin at 0, 14, 28."""
    rois, gt = torch.tensor([[28.0, 28.0, 84.0, 84.0]]), torch.tensor([[30.0, 40.0, 80.0, 90.0]])
    maps = grid_targets(rois, gt, 3, 28)[0]
    centres = {  # point: (row, column)
        0: (20, 15),  # (30, 40) px: cells 15, 20
        1: (18, 15),  # (30, 65): row 32 - 14
        4: (18, 13),  # (55, 65): cells 27, 32 minus 14
        5: (17, 13),  # (55, 90): row 45 - 28
        8: (17, 12),  # (80, 90): cells 40, 45 minus 28
    }
    for point, (row, col) in centres.items():
        plus = {(row, col), (row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)}
        assert {tuple(cell) for cell in maps[point].nonzero().tolist()} == plus


def test_a_cell_just_outside_counts_as_the_first():
    """(g - min) / size * 56 in (-1, 0) is truncated to 0."""
    rois = torch.tensor([[28.0, 28.0, 84.0, 84.0]])
    maps = grid_targets(rois, torch.tensor([[-1.0, 40.0, 80.0, 90.0]]), 3, 28, radius=0)[0]
    assert maps[0].nonzero().tolist() == [[20, 0]]
    maps = grid_targets(rois, torch.tensor([[-2.0, 40.0, 80.0, 90.0]]), 3, 28, radius=0)[0]
    assert maps[0].sum() == 0


@pytest.mark.parametrize("radius, cells", [(0, 0.5), (1, 1.5)])
def test_decoding_targets_gives_the_box_back(radius, cells):
    """To half a cell of a 28th of the RoI; of a plus the first cell is the best, one above its centre."""
    rois, gt = (x.float() for x in make_boxes(200, seed=1))
    boxes = decode_boxes(grid_targets(rois, gt, 3, 28, radius), rois, 3)
    cell = ((rois[:, 2:] - rois[:, :2]) / 28).repeat(1, 2)
    assert ((boxes - gt).abs() / cell).max() <= cells + 1e-3
    assert ((boxes - rois).abs() / cell).max() > 5  # and not the RoI itself


def decode_loop(logits, box):
    """One RoI, n = 3."""
    x1, y1, x2, y2 = box
    w, h, side = x2 - x1, y2 - y1, logits.shape[-1]
    points = []
    for i, heatmap in enumerate(logits.tolist()):
        best, row, col = max((v, -r, -c) for r, line in enumerate(heatmap) for c, v in enumerate(line))
        x = (-col + 14 * (i // 3) + 0.5) / side * w + x1 - w / 2
        y = (-row + 14 * (i % 3) + 0.5) / side * h + y1 - h / 2
        points.append((1 / (1 + math.exp(-best)), x, y))

    def mean(members, axis):
        return sum(points[i][0] * points[i][axis] for i in members) / sum(points[i][0] for i in members)

    return [mean((0, 1, 2), 1), mean((0, 3, 6), 2), mean((6, 7, 8), 1), mean((2, 5, 8), 2)]


def test_decoding_equals_a_loop():
    boxes = make_boxes(4)[0].float()
    logits = torch.randn(4, 9, 28, 28, generator=torch.Generator().manual_seed(3)) * 4 - 6
    wanted = torch.tensor([decode_loop(x, b) for x, b in zip(logits, boxes.tolist())])
    torch.testing.assert_close(decode_boxes(logits, boxes, 3), wanted, atol=1e-3, rtol=1e-5)


def test_decoding_survives_probabilities_that_underflow():
    """All p are exp(-300): 0 in float32. Equal ones weigh the same; half precision goes in as it is."""
    boxes = make_boxes(2)[0].float()
    logits = torch.full((2, 9, 28, 28), -4.0)
    logits[:, torch.arange(9), torch.arange(9), torch.arange(9) + 3] = 0.0
    wanted = decode_boxes(logits, boxes, 3)
    torch.testing.assert_close(decode_boxes(logits - 300, boxes, 3), wanted)
    torch.testing.assert_close(decode_boxes((logits - 300).half(), boxes, 3), wanted)


def test_order_of_points_and_windows():
    ix, iy = point_axes(3)
    assert ix.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and iy.tolist() == [0, 1, 2] * 3
    assert window_starts(3, 28).tolist() == [0, 14, 28] and window_starts(2, 28).tolist() == [0, 28]


def test_jitter_stays_within_its_bounds_and_reaches_them():
    torch.manual_seed(0)
    boxes = make_boxes(1)[0].expand(4000, 4)
    jittered = jitter_boxes(boxes, 0.15)
    size, new_size = boxes[:, 2:] - boxes[:, :2], jittered[:, 2:] - jittered[:, :2]
    shift = ((jittered[:, :2] + jittered[:, 2:]) - (boxes[:, :2] + boxes[:, 2:])) / 2 / size
    draws = torch.cat([shift, new_size / size - 1], dim=1)
    assert (draws.abs() <= 0.15 + 1e-9).all()
    assert (draws.amax(0) > 0.149).all() and (draws.amin(0) < -0.149).all()
    assert (torch.corrcoef(draws.T) - torch.eye(4)).abs().max() < 0.06  # four independent draws
    torch.testing.assert_close(jitter_boxes(boxes, 0.0), boxes)


def test_no_rois():
    none = torch.zeros(0, 4)
    assert grid_targets(none, none, 3, 28).shape == (0, 9, 28, 28)
    assert decode_boxes(torch.zeros(0, 9, 28, 28), none, 3).shape == jitter_boxes(none, 0.15).shape == (0, 4)
