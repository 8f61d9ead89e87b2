"""Geometry of Grid R-CNN (arXiv:1811.12030, sec. 3.1; Grid R-CNN Plus, arXiv:1906.05688, sec. 2.1).

A box is described by n x n points, its corners, side midpoints and centre for n = 3. Point n * ix + iy lies at the
fraction ix / (n - 1) of the width and iy / (n - 1) of the height. R: RoIs, P = n * n points, M: side of a heatmap.

A RoI is widened to twice its size about its centre and covered by 2M x 2M cells. The heatmap of a point is not all of
them but the M x M cells about the place where the point lies if the RoI is exact (Plus: half the side, a quarter of
the cells): it begins at column M * ix // (n - 1) and row M * iy // (n - 1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 3.0  # pixels: widened RoIs up to this size have no targets


def point_axes(grid_size: int, device=None) -> tuple[Tensor, Tensor]:
    """ix and iy (P,) of the points in their order."""
    points = torch.arange(grid_size**2, device=device)
    return points // grid_size, points % grid_size


def window_starts(grid_size: int, map_size: int, device=None) -> Tensor:
    """First cell (n,) of the windows of points with ix (or iy) 0 ... n - 1."""
    return torch.arange(grid_size, device=device) * map_size // (grid_size - 1)


def jitter_boxes(boxes: Tensor, amount: float) -> Tensor:
    """Boxes (R, 4), xyxy, with the centre moved by up to `amount` of the size and each side scaled by up to
    1 +- `amount`, all independent and uniform. Not clipped."""
    size = boxes[:, 2:] - boxes[:, :2]
    shift, scale = (torch.rand_like(boxes) * 2 - 1).mul(amount).split(2, dim=1)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + shift * size
    half = size * (1 + scale) / 2
    return torch.cat([centre - half, centre + half], dim=1)


def grid_targets(rois: Tensor, gt_boxes: Tensor, grid_size: int, map_size: int, radius: int = 1) -> Tensor:
    """Heatmaps (R, P, M, M) of 0 and 1: cells at most `radius` from the one that holds the point of the ground truth.

    rois, gt_boxes: (R, 4), xyxy in pixels, a ground truth for each RoI. A point outside its window gives zeros, and so
    does a RoI of which twice a side is at most 3 px.
    """
    size = rois[:, 2:] - rois[:, :2]
    origin = rois[:, :2] - size / 2
    fractions = torch.linspace(0, 1, grid_size, device=rois.device, dtype=rois.dtype)[:, None]
    lines = gt_boxes[:, None, :2] + fractions * (gt_boxes[:, 2:] - gt_boxes[:, :2])[:, None]  # (R, n, 2) pixels
    cells = ((lines - origin[:, None]) / (2 * size[:, None]).clamp(min=1e-6) * (2 * map_size)).trunc()
    starts = window_starts(grid_size, map_size, rois.device)[:, None]
    places = torch.arange(map_size, device=rois.device)
    squared = (places - (cells - starts)[..., None]) ** 2  # (R, n, 2, M) distances to each line
    ix, iy = point_axes(grid_size, rois.device)
    near = squared[:, iy, 1, :, None] + squared[:, ix, 0, None, :] <= radius**2
    large = (2 * size > MIN_SIDE).all(dim=1)
    return (near & large[:, None, None, None]).to(rois.dtype)


def decode_boxes(logits: Tensor, boxes: Tensor, grid_size: int) -> Tensor:
    """Boxes (R, 4), xyxy, that the heatmaps of RoIs say: a side is the mean of its n points, each at the centre of its
    map's best cell and weighted with that cell's probability. float32, not clipped.

    logits: (R, P, M, M); boxes: the RoIs (R, 4).
    """
    map_size = logits.shape[-1]
    best, cell = logits.float().flatten(2).max(dim=2)  # (R, P)
    starts = window_starts(grid_size, map_size, logits.device)
    ix, iy = point_axes(grid_size, logits.device)
    size = boxes[:, 2:] - boxes[:, :2]
    origin = boxes[:, :2] - size / 2
    x = (cell % map_size + starts[ix] + 0.5) / map_size * size[:, :1] + origin[:, :1]
    y = (cell // map_size + starts[iy] + 0.5) / map_size * size[:, 1:] + origin[:, 1:]
    # softmax(log p) = p / sum(p), also where all p are too small to be added
    log_p, x, y = (v.unflatten(1, (grid_size, grid_size)) for v in (F.logsigmoid(best), x, y))

    def side(log_p: Tensor, places: Tensor) -> Tensor:
        return (log_p.softmax(dim=1) * places).sum(dim=1)

    left, right = side(log_p[:, 0], x[:, 0]), side(log_p[:, -1], x[:, -1])
    top, bottom = side(log_p[:, :, 0], y[:, :, 0]), side(log_p[:, :, -1], y[:, :, -1])
    return torch.stack([left, top, right, bottom], dim=1)
