"""Axis-aligned boxes: float32, xyxy, in pixels. N, M, R: numbers of boxes."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class BoxMode(IntEnum):
    """How four (or five) numbers describe a box."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2  # REL: in [0, 1] of the image
    XYWH_REL = 3
    XYWHA_ABS = 4  # A: angle

    @staticmethod
    def convert(box: Any, from_mode: "BoxMode", to_mode: "BoxMode") -> Any:
        """Convert a list or tuple of 4 numbers (rounded to float32), or an array or tensor (n, 4); only XYXY_ABS and
        XYWH_ABS, without a + 1. Returns the type of `box`, or `box` itself if the modes are equal."""
        if from_mode == to_mode:
            return box
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise ValueError(f"Cannot convert boxes from {from_mode!r} to {to_mode!r}.")
        is_sequence = isinstance(box, (list, tuple))
        out = torch.tensor(box) if is_sequence else torch.as_tensor(box).clone()
        if out.shape[-1:] != (4,) or out.dim() != (1 if is_sequence else 2):
            raise ValueError(f"Expected a list of 4 numbers or an (n, 4) array, got {box!r}.")
        out[..., 2:] += out[..., :2] * (1 if from_mode == BoxMode.XYWH_ABS else -1)
        if is_sequence:
            return type(box)(out.tolist())
        return out.numpy() if isinstance(box, np.ndarray) else out


class TensorRows:
    """What Boxes, BitMasks and ROIMasks share: all they hold is `tensor`, with a row per instance."""

    _ndim = 3

    def __init__(self, tensor: Tensor):
        if tensor.dim() != self._ndim:
            name, shape = type(self).__name__, tuple(tensor.shape)
            raise ValueError(f"{name} takes a tensor of {self._ndim} dimensions, rows first, got {shape}.")
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any):
        return type(self)(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor):
        """An int keeps one row; a slice, an index tensor or a bool tensor (n,) selects."""
        rows = self.tensor[item][None] if isinstance(item, int) else self.tensor[item]
        assert rows.dim() == self.tensor.dim(), f"Indexing {type(self).__name__} with {item} does not select rows."
        return type(self)(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    @classmethod
    def cat(cls, items: Sequence["TensorRows"]):
        """The rows of all, always a copy; an empty list gives no boxes."""
        return cls(torch.cat([x.tensor for x in items]) if len(items) else [])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"


class Boxes(TensorRows):
    """R boxes in `tensor` (R, 4), always float32: half coordinates lose whole pixels."""

    _ndim = 2

    def __init__(self, tensor: Any):
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)  # keeps device and graph
        assert tensor.dim() == 2 and tensor.size(1) == 4, f"Boxes takes an (n, 4) tensor, got {tuple(tensor.shape)}."
        super().__init__(tensor)

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def area(self) -> Tensor:
        """(R,), in square pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2]).prod(dim=1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clamp to an image of (height, width), in place, into a new tensor."""
        assert torch.isfinite(self.tensor).all(), "Cannot clip boxes with infinite or nan values."
        h, w = box_size
        columns = zip(self.tensor.unbind(dim=1), (w, h, w, h))
        self.tensor = torch.stack([x.clamp(min=0, max=side) for x, side in columns], dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(R,) bool: both sides strictly longer than `threshold`."""
        return ((self.tensor[:, 2:] - self.tensor[:, :2]) > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(R,) bool: inside an image of (height, width) that is larger by the threshold."""
        (h, w), t = box_size, boundary_threshold
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        return (x0 >= -t) & (y0 >= -t) & (x1 < w + t) & (y1 < h + t)

    def get_centers(self) -> Tensor:
        """(R, 2): x, y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates in place, on the same storage."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Areas (...) of the overlaps of a and b (..., 4), which are broadcast."""
    sides = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def _ratio(inter: Tensor, area: Tensor) -> Tensor:
    """inter / area, but 0 (not nan) for degenerate boxes."""
    return torch.where(inter > 0, inter / area, inter.new_zeros(()))


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection areas."""
    return _intersection(boxes1.tensor[:, None], boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union."""
    inter = pairwise_intersection(boxes1, boxes2)
    return _ratio(inter, boxes1.area()[:, None] + boxes2.area() - inter)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of the boxes of the second argument."""
    return _ratio(pairwise_intersection(boxes1, boxes2), boxes2.area())


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """(N, M, 4) distances of points (N, 2) to the left, top, right, bottom; inside: positive."""
    low, high = boxes.tensor.split(2, dim=1)
    return torch.cat([points[:, None] - low, high - points[:, None]], dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) IoU of the i-th with the i-th box; nan for two empty boxes."""
    assert len(boxes1) == len(boxes2), f"Got {len(boxes1)} and {len(boxes2)} boxes to match."
    inter = _intersection(boxes1.tensor, boxes2.tensor)
    return inter / (boxes1.area() + boxes2.area() - inter)
