"""Label maps in plain PyTorch: every class, and for every object the formula over the full canvas."""

import torch
from torch import Tensor


def _pyramid(box: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """1 - max(|u - cx| / w, |v - cy| / h) where that is at least 0.5, else 0: (H, W)."""
    x0, y0, x1, y1 = box.unbind()
    w, h = x1 - x0, y1 - y0
    along = (columns - (x0 + x1) / 2).abs() / w
    across = (rows - (y0 + y1) / 2).abs() / h
    p = 1 - torch.maximum(along[None, :], across[:, None])
    return torch.where((p >= 0.5) & (w > 0) & (h > 0), p, 0)


@torch.no_grad()
def dense_label_maps(
    boxes: list[Tensor],
    classes: list[Tensor],
    size: tuple[int, int],
    *,
    num_classes: int,
    intensities: list[Tensor] | None = None,
    masks: list[Tensor] | None = None,
    pixel_offset: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(N, num_classes, H, W); `render_label_maps` says what the arguments are."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    columns, rows = (torch.arange(n, dtype=compute, device=boxes[0].device) + pixel_offset for n in size[::-1])
    maps = torch.zeros((len(boxes), num_classes, *size), dtype=compute, device=boxes[0].device)
    for i in range(len(boxes)):
        for j, c in enumerate(classes[i].tolist()):
            p = _pyramid(boxes[i][j].to(compute), columns, rows)
            if intensities is not None:
                p = p * intensities[i][j].to(compute)
            if masks is not None:
                p = p * masks[i][j]
            maps[i, c] = torch.maximum(maps[i, c], p)
    return maps.to(dtype)


def render_label_maps_reference(boxes, classes, size, **options) -> tuple[Tensor, Tensor]:
    """Dense rendering, then the classes that are present; the arguments of `render_label_maps`."""
    present = torch.cat(classes).unique()
    if len(present) == 0:
        present = present.new_zeros(1)
    return dense_label_maps(boxes, classes, size, **options)[:, present], present
