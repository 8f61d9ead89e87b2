"""Which anchors lie in which objects, as a list of pairs, without a matrix of anchors by objects.

B: images, M: objects of all images, L: levels, A: anchors (shapes) at a location, N: anchors of an image (the locations
of all levels by rising stride, row by row, A at each), K: classes, P: pairs. Boxes are xyxy in pixels.

The locations of a level form a grid, so those inside a box form a rectangle of cells: its four numbers are found by
bisection of the grid's axes. Time and memory are O(P + M L log(side)).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detectron2.structures import Instances


class Grid(NamedTuple):
    """The locations of all levels."""

    columns: list[Tensor]  # per level (W,), x of the centres in pixels, rising
    rows: list[Tensor]  # per level (H,), y
    strides: list[float]
    shapes_per_location: int  # A

    @classmethod
    def of(cls, features: Sequence[Tensor], generator) -> "Grid":
        """The grid of maps (B, C, H, W) under a DefaultAnchorGenerator."""
        axes = {
            dim: [
                (torch.arange(x.shape[dim], device=x.device) + generator.offset) * stride
                for x, stride in zip(features, generator.strides)
            ]
            for dim in (2, 3)
        }
        return cls(axes[3], axes[2], list(generator.strides), generator.num_cell_anchors[0])

    def widths(self) -> list[int]:
        return [len(x) for x in self.columns]

    def sizes(self) -> list[int]:
        """Locations per level."""
        return [len(x) * len(y) for x, y in zip(self.columns, self.rows)]

    def points(self) -> Tensor:
        """Centres (N / A, 2) of all locations, x and y."""
        levels = [torch.meshgrid(y, x, indexing="ij")[::-1] for x, y in zip(self.columns, self.rows)]
        return torch.cat([torch.stack(axes, dim=-1).flatten(0, 1) for axes in levels])


class Scene(NamedTuple):
    """What an assigner sees of a batch. Nothing here requires a gradient; objects are sorted by image."""

    grid: Grid
    anchors: Tensor  # (N, 4)
    logits: Tensor  # (B, N, K)
    boxes: Tensor  # (B, N, 4), decoded predictions
    gt_boxes: Tensor  # (M, 4)
    gt_classes: Tensor  # (M,) int64
    gt_images: Tensor  # (M,) int64

    @classmethod
    def of(cls, grid: Grid, anchors: Tensor, logits: Tensor, boxes: Tensor, targets: Sequence[Instances]) -> "Scene":
        """From predictions, which are detached, and the ground truth of each image."""
        counts = torch.tensor([len(x) for x in targets], device=anchors.device)
        return cls(
            grid,
            anchors,
            logits.detach(),
            boxes.detach(),
            torch.cat([x.gt_boxes.tensor for x in targets]),
            torch.cat([x.gt_classes for x in targets]),
            torch.arange(len(targets), device=anchors.device).repeat_interleave(counts),
        )


def cells_inside(grid: Grid, bounds: Tensor) -> Tensor:
    """The locations strictly inside `bounds` (M, L, 4), one box per object and level.

    Returns (M, L, 4) int64: first column, first row, number of columns and of rows.
    """
    levels = []
    for (x0, y0, x1, y1), xs, ys in zip(bounds.permute(1, 2, 0).contiguous(), grid.columns, grid.rows):
        left, right = torch.searchsorted(xs, x0, right=True), torch.searchsorted(xs, x1)
        top, bottom = torch.searchsorted(ys, y0, right=True), torch.searchsorted(ys, y1)
        levels.append(torch.stack([left, top, (right - left).clamp(min=0), (bottom - top).clamp(min=0)], dim=1))
    return torch.stack(levels, dim=1)


def candidate_cells(grid: Grid, gt_boxes: Tensor, center_radius: float | None, nearest: bool) -> Tensor:
    """The spatial prior of a bag, in the form of `cells_inside`.

    center_radius: None, or only locations nearer than so many strides to the object's centre, along both axes.
    nearest: an object without a location gets the one nearest to its centre, in strides.
    """
    bounds = gt_boxes[:, None].expand(-1, len(grid.strides), -1)
    center = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
    if center_radius is not None:
        reach = center_radius * center.new_tensor(grid.strides)[:, None]
        low = torch.maximum(bounds[..., :2], center[:, None] - reach)
        bounds = torch.cat([low, torch.minimum(bounds[..., 2:], center[:, None] + reach)], dim=2)
    cells = cells_inside(grid, bounds)
    return _with_nearest(grid, center, cells) if nearest else cells


def _with_nearest(grid: Grid, center: Tensor, cells: Tensor) -> Tensor:
    """`cells`, with one cell for the objects that have none; of equally near ones, the first."""
    nearest, distances = [], []
    for xs, ys, stride in zip(grid.columns, grid.rows, grid.strides):
        cells_away = [((c - axis[0]) / stride, len(axis) - 1) for c, axis in zip(center.T, (xs, ys))]
        place = [(x - 0.5).ceil().long().clamp(0, last) for x, last in cells_away]  # rounded, halves down
        nearest.append(torch.stack([*place, *[torch.ones_like(place[0])] * 2], dim=1))
        distances.append(torch.hypot(xs[place[0]] - center[:, 0], ys[place[1]] - center[:, 1]) / stride)
    nearest = torch.stack(nearest, dim=1)
    chosen = torch.stack(distances, dim=1).argmin(dim=1, keepdim=True) == torch.arange(
        cells.shape[1], device=cells.device
    )
    without = cells[..., 2:].prod(dim=2).sum(dim=1) == 0
    return torch.where((without[:, None] & chosen)[..., None], nearest, cells)


def list_pairs(grid: Grid, cells: Tensor, gt_images: Tensor) -> tuple[Tensor, Tensor]:
    """All anchors of `cells` (M, L, 4): index of the anchor among the batch's B N, index of the object; (P,) each.

    Pairs are sorted by object, those of an object by anchor.
    """
    num_levels = cells.shape[1]
    counts = cells[..., 2:].prod(dim=2).flatten()
    rectangle = torch.arange(len(counts), device=cells.device).repeat_interleave(counts)
    place = torch.arange(len(rectangle), device=cells.device) - (counts.cumsum(0) - counts)[rectangle]
    left, top, width, _ = cells.flatten(0, 1)[rectangle].unbind(dim=1)
    gts, level = rectangle // num_levels, rectangle % num_levels
    sizes = torch.tensor(grid.sizes(), device=cells.device)
    row, column = top + place // width, left + place % width
    location = (sizes.cumsum(0) - sizes)[level] + row * torch.tensor(grid.widths(), device=cells.device)[level] + column
    first = (gt_images[gts] * sizes.sum() + location) * grid.shapes_per_location
    shapes = torch.arange(grid.shapes_per_location, device=cells.device)
    return (first[:, None] + shapes).flatten(), gts.repeat_interleave(len(shapes))


def blocks_of_pairs(
    scene: Scene, center_radius: float | None, nearest: bool, max_pairs: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`list_pairs` of the candidates of all objects, in blocks of whole objects.

    A block has at most `max_pairs` pairs and those of one more object: the peak of memory, whatever the objects are.
    """
    cells = candidate_cells(scene.grid, scene.gt_boxes, center_radius, nearest)
    counts = cells[..., 2:].prod(dim=2).sum(dim=1) * scene.grid.shapes_per_location
    block = (counts.cumsum(0) - counts) // max_pairs
    start = 0
    for size in block.unique_consecutive(return_counts=True)[1].tolist():
        part = slice(start, start + size)
        anchors, gts = list_pairs(scene.grid, cells[part], scene.gt_images[part])
        yield anchors, gts + start
        start += size
