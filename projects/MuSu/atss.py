"""ATSS (arXiv:1912.02424, Alg. 1) as an assigner of the same detector: the baseline, hard labels for both heads.

Differs from the paper's detector: no centerness. With A shapes at a location, the candidates are the k nearest
locations of each level with all their shapes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou

from .assign import Assignment, owned
from .pairs import Grid, Scene


@dataclass(frozen=True)
class ATSSAssigner:
    """Positive are, of the `topk` locations per level nearest to an object's centre, those strictly inside it whose
    anchor's IoU reaches mean + standard deviation (of the sample) over all of them; an anchor in conflict goes to its
    largest IoU."""

    topk: int = 9

    def __post_init__(self):
        if self.topk <= 0:
            raise ValueError(f"ATSSAssigner: topk must be positive, got {self.topk}.")

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Assignment:
        grid, gt_boxes, num = scene.grid, scene.gt_boxes, len(scene.anchors)
        near = nearest_locations(grid, gt_boxes, self.topk)
        point = grid.points()[near]
        inside = torch.cat([point - gt_boxes[:, None, :2], gt_boxes[:, None, 2:] - point], dim=2).amin(dim=2) > 0
        shapes = torch.arange(grid.shapes_per_location, device=near.device)
        anchors = (near[..., None] * len(shapes) + shapes).flatten(1)
        pairs = Boxes(scene.anchors[anchors.flatten()]), Boxes(gt_boxes.repeat_interleave(anchors.shape[1], dim=0))
        iou = matched_pairwise_iou(*pairs).nan_to_num(nan=0).view(anchors.shape)
        positive = inside.repeat_interleave(len(shapes), dim=1)
        mean = iou.mean(dim=1, keepdim=True)
        variance = ((iou - mean) ** 2).sum(dim=1, keepdim=True) / max(iou.shape[1] - 1, 1)
        positive &= iou >= mean + variance.sqrt()
        gts, column = positive.nonzero(as_tuple=True)
        anchors = scene.gt_images[gts] * num + anchors[gts, column]
        mine = owned(anchors, gts, iou[gts, column], scene.boxes[..., 0].numel())
        ones = iou.new_ones(int(mine.sum()))
        return Assignment(anchors[mine], gts[mine], ones, ones)


def nearest_locations(grid: Grid, gt_boxes: Tensor, topk: int) -> Tensor:
    """Indices (M, C) of the `topk` locations of each level (all of a smaller one) nearest to each box's centre."""
    center, chosen, start = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2, [], 0
    for xs, ys, size in zip(grid.columns, grid.rows, grid.sizes()):
        dx, dy = xs - center[:, :1], ys - center[:, 1:]
        distance = (dy[:, :, None] ** 2 + dx[:, None] ** 2).flatten(1)
        chosen.append(distance.topk(min(topk, size), largest=False).indices + start)
        start += size
    return torch.cat(chosen, dim=1)
