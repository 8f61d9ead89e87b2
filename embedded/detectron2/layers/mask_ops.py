"""Paste the fixed-size masks of boxes into an image."""

import torch
import torch.nn.functional as F
from torch import Tensor

GPU_CHUNK_BYTES = 1024**3  # float32 pixels sampled at once


def _sample_window(masks: Tensor, boxes: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """masks (N, M, M) sampled at the pixel centres of `window` (x0, y0, x1, y1): (N, h, w)."""
    left, top, right, bottom = window
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    xs = torch.arange(left, right, device=boxes.device, dtype=torch.float32) + 0.5
    ys = torch.arange(top, bottom, device=boxes.device, dtype=torch.float32) + 0.5
    xs = (xs - x0) / (x1 - x0) * 2 - 1  # (N, w), in [-1, 1] inside the box
    ys = (ys - y0) / (y1 - y0) * 2 - 1
    size = (len(boxes), bottom - top, right - left)
    grid = torch.stack([xs[:, None, :].expand(size), ys[:, :, None].expand(size)], dim=3)
    return F.grid_sample(masks[:, None], grid.to(masks.dtype), align_corners=False)[:, 0]


def _window(box: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels of the image that a box (4,) can touch: x0, y0, x1, y1."""
    x0, y0 = (box[:2].floor() - 1).clamp(min=0).int().tolist()
    x1, y1 = (box[2:].ceil() + 1).int().tolist()
    return x0, y0, max(min(x1, width), x0), max(min(y1, height), y0)


def paste_masks_in_image(masks: Tensor, boxes, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resize the masks (N, M, M) to their boxes, Boxes or (N, 4) in pixels, and paste them. image_shape: (height,
    width). Returns bool (N, height, width), true from `threshold` on; with a negative threshold uint8 values * 255.
    Without masks: an empty uint8 tensor."""
    assert masks.shape[-1] == masks.shape[-2], f"Masks must be square, got {tuple(masks.shape)}."
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    n, (height, width) = len(masks), image_shape
    assert len(boxes) == n, f"Got {n} masks but {len(boxes)} boxes."
    if n == 0:
        return masks.new_empty((0, height, width), dtype=torch.uint8)
    masks = masks if masks.is_floating_point() else masks.float()
    out = masks.new_zeros((n, height, width), dtype=torch.bool if threshold >= 0 else torch.uint8)
    if masks.device.type == "cpu":  # one mask at a time: most pixels lie outside of every box
        chunks = [(slice(i, i + 1), _window(boxes[i], height, width)) for i in range(n)]
    else:
        step = max(1, GPU_CHUNK_BYTES // (height * width * 4))
        chunks = [(slice(i, i + step), (0, 0, width, height)) for i in range(0, n, step)]
    for rows, (x0, y0, x1, y1) in chunks:
        values = _sample_window(masks[rows], boxes[rows], (x0, y0, x1, y1))
        out[rows, y0:y1, x0:x1] = values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
    return out
