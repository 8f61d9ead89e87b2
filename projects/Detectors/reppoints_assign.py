"""Which locations learn which ground truth (arXiv:1904.11490, sec. 4). G: ground truths of an image, R: its locations.

Locations are numbered level by level, each level row by row; the location (row, column) of a level lies at
(column, row) * stride pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

MIN_SIDE = 1e-6  # pixels: keeps logarithms and ratios of degenerate boxes finite


@torch.no_grad()
def assign_centers(
    gt_boxes: Boxes, shapes: Sequence[tuple[int, int]], strides: Sequence[int], point_scale: float = 4.0
) -> Tensor:
    """The ground truth whose centre is nearest to each location, for the first points: (R,) int64, -1: none.

    A ground truth of w x h pixels belongs to the level of stride 2**l, l = floor(log2(sqrt(w * h) / point_scale)),
    or the nearest that there is, and there to the one location with the least distance from its centre, in units of
    (w, h). A location that is the nearest of several takes the nearest of them, the others have none; of equal
    distances the first counts.

    Args:
        shapes: (rows, columns) of each level. strides: powers of two, doubling.
    """
    gt, device = gt_boxes.tensor, gt_boxes.device
    num_locations = [rows * columns for rows, columns in shapes]
    first = torch.tensor([0, *num_locations], device=device).cumsum(0)
    size = (gt[:, 2:] - gt[:, :2]).clamp(min=MIN_SIDE)
    level = (size / point_scale).log2().mean(dim=1).long()
    lowest = strides[0].bit_length() - 1
    level = (level - lowest).clamp(min=0, max=len(strides) - 1)
    last = torch.tensor([(columns - 1, rows - 1) for rows, columns in shapes], device=device)[level]
    stride = torch.tensor(strides, device=device)[level, None]
    center = gt_boxes.get_centers()
    # The least distance in units of (w, h) is the least along each axis: no matrix over all locations is needed.
    cell = (center / stride - 0.5).ceil().long().clamp(min=0).minimum(last)
    distance = ((cell * stride - center) / size).norm(dim=1)
    location = first[level] + cell[:, 1] * (last[:, 0] + 1) + cell[:, 0]

    nearest = distance.new_full((sum(num_locations),), torch.inf).scatter_reduce(0, location, distance, "amin")
    index = (distance == nearest[location]).nonzero().squeeze(1)
    none = len(gt)
    winner = torch.full_like(nearest, none, dtype=torch.int64).scatter_reduce(0, location[index], index, "amin")
    return winner.masked_fill(winner == none, -1)


@torch.no_grad()
def match_boxes(matcher: Matcher, gt_boxes: Boxes, boxes: Boxes) -> tuple[Tensor, Tensor]:
    """`matcher` on the IoU of every location's first box, for classes and refined points.

    A ground truth that overlaps no box stays without one: else every box that overlaps nothing would be the best for
    it, and positive, where the matcher allows low-quality matches.

    Returns:
        index of the ground truth (R,) int64, label (R,) int8: 1 object, 0 background, -1 ignored.
    """
    quality = pairwise_iou(gt_boxes, boxes)
    met = (quality > 0).any(dim=1).nonzero().squeeze(1)
    index, labels = matcher(quality[met])
    return met[index] if len(met) else index, labels
