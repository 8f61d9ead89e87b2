"""Resizing, flipping and cropping at random. Sizes are pixels, (height, width) order."""

import sys

import numpy as np
from fvcore.transforms import transform as fv
from PIL import Image

from .augmentation import Augmentation
from .transform import ResizeTransform

__all__ = "FixedSizeCrop RandomCrop RandomFlip Resize ResizeScale ResizeShortestEdge".split()


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with probability `prob`."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError(f"RandomFlip flips one way, got {horizontal=}, {vertical=}: use two of them for both.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> fv.Transform:
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return fv.NoOpTransform()
        return fv.HFlipTransform(w) if self.horizontal else fv.VFlipTransform(h)


class Resize(Augmentation):
    """Resize to a fixed (h, w); an int means a square."""

    def __init__(self, shape, interp: int = Image.BILINEAR):
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> fv.Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale the short side to a random length, unless the long side would exceed `max_size`. short_edge_length: an int,
    or the two ends of a "range" (both included), or the lengths of a "choice". A drawn 0 leaves the image as it is."""

    def __init__(self, short_edge_length, max_size=sys.maxsize, sample_style="range", interp=Image.BILINEAR):
        assert sample_style in ("range", "choice"), f"Unknown sample_style {sample_style!r}."
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        assert sample_style == "choice" or len(short_edge_length) == 2, f"A 'range' has 2 ends: {short_edge_length}."
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> fv.Transform:
        h, w = image.shape[:2]
        if self.sample_style == "range":
            low, high = self.short_edge_length
            size = np.random.randint(low, high + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return fv.NoOpTransform()
        return ResizeTransform(h, w, *self.get_output_shape(h, w, size, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int):
        """Returns (h, w)."""
        scale = short_edge_length * 1.0 / min(oldh, oldw)
        h, w = (short_edge_length, oldw * scale) if oldh < oldw else (oldh * scale, short_edge_length)
        if max(h, w) > max_size:
            scale = max_size * 1.0 / max(h, w)
            h, w = h * scale, w * scale
        return int(h + 0.5), int(w + 0.5)


class ResizeScale(Augmentation):
    """Fit the image into the target box scaled by a random factor (large scale jitter)."""

    def __init__(self, min_scale, max_scale, target_height: int, target_width: int, interp=Image.BILINEAR):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> fv.Transform:
        old = np.asarray(image.shape[:2])
        scale = np.random.uniform(self.min_scale, self.max_scale)
        target = np.multiply((self.target_height, self.target_width), scale)
        new = np.round(old * np.min(target / old)).astype(int).tolist()
        return ResizeTransform(*image.shape[:2], *new, self.interp)


class RandomCrop(Augmentation):
    """Crop a window of random place, and of random size for the "range" types. crop_size (h, w) is a share of the image
    for "relative" and the least share for "relative_range"; pixels for "absolute"; for "absolute_range" the two ends,
    in pixels, between which both sides are drawn. The window never exceeds the image."""

    def __init__(self, crop_type: str, crop_size):
        types = ("relative_range", "relative", "absolute", "absolute_range")
        assert crop_type in types, f"RandomCrop: crop_type is one of {types}, got {crop_type!r}."
        self._init({"crop_type": crop_type, "crop_size": crop_size})

    def get_transform(self, image: np.ndarray) -> fv.Transform:
        h, w = image.shape[:2]
        ch, cw = self.get_crop_size((h, w))
        assert h >= ch and w >= cw, f"RandomCrop: window {ch}x{cw} exceeds the image {h}x{w}."
        y0 = np.random.randint(h - ch + 1)
        x0 = np.random.randint(w - cw + 1)
        return fv.CropTransform(x0, y0, cw, ch)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """image_size and the result: (h, w)."""
        (h, w), (a, b) = image_size, self.crop_size
        if self.crop_type == "absolute":
            return min(a, h), min(b, w)
        if self.crop_type == "absolute_range":
            assert a <= b, f"RandomCrop: absolute_range needs low <= high, got {a}, {b}."
            ch = np.random.randint(min(h, a), min(h, b) + 1)
            return ch, np.random.randint(min(w, a), min(w, b) + 1)
        if self.crop_type == "relative_range":
            least = np.asarray(self.crop_size, dtype=np.float32)
            a, b = least + np.random.rand(2) * (1 - least)
        return int(h * a + 0.5), int(w * b + 0.5)


class FixedSizeCrop(Augmentation):
    """Crop to at most `crop_size` (h, w), then pad to exactly that on the right and below."""

    def __init__(self, crop_size, pad: bool = True, pad_value=128.0, seg_pad_value: int = 255):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> fv.TransformList:
        (h, w), (ch, cw) = image.shape[:2], self.crop_size
        spare = np.maximum((h - ch, w - cw), 0)
        y0, x0 = np.round(spare * np.random.uniform(0.0, 1.0)).astype(int).tolist()
        tfms = [fv.CropTransform(x0, y0, cw, ch, w, h)]
        if self.pad:
            h, w = min(h, ch), min(w, cw)
            tfms.append(fv.PadTransform(0, 0, cw - w, ch - h, w, h, self.pad_value, self.seg_pad_value))
        return fv.TransformList(tfms)
