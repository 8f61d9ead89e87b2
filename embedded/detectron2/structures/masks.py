"""Instance masks: bitmaps, polygons, per-box grids. n: instances, H x W: image, M: grid side."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.roi_align import ROIAlign
from detectron2.utils.memory import retry_if_cuda_oom

from .boxes import Boxes, TensorRows


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of one polygon by the shoelace formula."""
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Bool (height, width), the union of polygons x0, y0, x1, y1, ... in pixels."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return mask_util.decode(rle).astype(bool)


def rasterize_polygons_within_box(polygons: list[np.ndarray], box: np.ndarray, mask_size: int) -> Tensor:
    """Bool (mask_size, mask_size): the polygons cut out by `box` (4,) and resized."""
    scale = mask_size / np.maximum(box[2:] - box[:2], 0.1)
    cropped = [((p.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for p in polygons]
    return torch.from_numpy(polygons_to_bitmask(cropped, mask_size, mask_size))


class BitMasks(TensorRows):
    """Masks in `tensor`, bool (n, H, W)."""

    def __init__(self, tensor: Tensor | np.ndarray):
        super().__init__(torch.as_tensor(tensor).to(torch.bool))
        self.image_size = tuple(self.tensor.shape[1:])

    def nonempty(self) -> Tensor:
        """(n,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: "PolygonMasks | list", height: int, width: int) -> "BitMasks":
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        return BitMasks(np.stack(masks) if masks else np.zeros((0, height, width)))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Bool (n, M, M): mask i inside box i of `boxes` (n, 4), by RoIAlign, cut at 0.5."""
        assert len(boxes) == len(self), f"Got {len(boxes)} boxes for {len(self)} masks."
        rows = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
        rois = torch.cat([rows[:, None], boxes], dim=1)
        masks = self.tensor.to(device=boxes.device, dtype=torch.float32)
        return ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)(masks[:, None], rois)[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The smallest box around all pixels of a mask, max edges exclusive; zeros if empty."""
        lines = (self.tensor.any(dim=1).int(), self.tensor.any(dim=2).int())  # x, y
        low = [line.argmax(dim=1) for line in lines]
        high = [line.shape[1] - line.flip(1).argmax(dim=1) for line in lines]
        return Boxes(torch.stack(low + high, dim=1) * self.nonempty()[:, None])


def _polygon(numbers: Any) -> np.ndarray:
    numbers = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers, dtype=np.float64)
    if len(numbers) % 2 or len(numbers) < 6:
        raise ValueError(f"A polygon has at least 3 points x, y; got {len(numbers)} numbers.")
    return numbers


class PolygonMasks:
    """Per instance a list of polygons, float64 arrays x0, y0, x1, y1, ... in pixels, on the CPU."""

    def __init__(self, polygons: list[list[Tensor | np.ndarray]]):
        if not isinstance(polygons, list) or not all(isinstance(p, list) for p in polygons):
            raise ValueError(f"PolygonMasks takes a list of instances, each a list of polygons: {str(polygons):.70}.")
        self.polygons = [[_polygon(p) for p in instance] for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        boxes = torch.zeros(len(self.polygons), 4)
        for box, polygons in zip(boxes, self.polygons):
            if polygons:
                points = torch.from_numpy(np.concatenate(polygons)).reshape(-1, 2)
                box[:2], box[2:] = points.amin(dim=0), points.amax(dim=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """(n,) bool: the instance has a polygon."""
        return torch.tensor([len(p) > 0 for p in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """(n,) float64: the sum over the polygons, whether they overlap or not."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in inst) for inst in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> "PolygonMasks":
        """An int keeps one instance; a slice, a list of ints, an int or a bool tensor selects."""
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            item = (item.nonzero().flatten() if item.dtype == torch.bool else item).tolist()
        return PolygonMasks([self.polygons[i] for i in ([item] if isinstance(item, int) else item)])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Bool (n, M, M) on the device of `boxes` (n, 4): instance i inside box i."""
        assert len(boxes) == len(self), f"Got {len(boxes)} boxes for {len(self)} masks."
        pairs = zip(self.polygons, boxes.detach().cpu().numpy())
        masks = [rasterize_polygons_within_box(polygons, box, mask_size) for polygons, box in pairs]
        return (torch.stack(masks) if masks else torch.zeros(0, mask_size, mask_size).bool()).to(boxes.device)

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        return PolygonMasks([p for masks in polymasks_list for p in masks.polygons])


class ROIMasks(TensorRows):
    """Masks in `tensor` (n, M, M), each on the grid of its own box."""

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste into an image of (height, width); boxes in its pixels."""
        paste = retry_if_cuda_oom(paste_masks_in_image)
        return BitMasks(paste(self.tensor, boxes.tensor, (height, width), threshold=threshold))
