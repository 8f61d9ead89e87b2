"""Deterministic transforms beyond fvcore's."""

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import Transform
from PIL import Image

__all__ = ["ResizeTransform"]

_INTERPOLATE_MODE = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


class ResizeTransform(Transform):
    """Resize from h x w to new_h x new_w pixels; `interp` is one of Pillow's, default bilinear."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """img: (H, W) or (H, W, C). uint8 goes through Pillow, other types through torch."""
        old, new = (self.h, self.w), (self.new_h, self.new_w)
        assert img.shape[:2] == old, f"This transform resizes {self.h}x{self.w} (HxW), got shape {img.shape}."
        resize = _resize_uint8 if img.dtype == np.uint8 else _resize_float
        return img if old == new else resize(img, *new, self.interp if interp is None else interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: (N, 2) xy, scaled in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


def _resize_uint8(img: np.ndarray, h: int, w: int, interp: int) -> np.ndarray:
    if img.ndim == 3 and img.shape[2] == 1:
        return _resize_uint8(img[:, :, 0], h, w, interp)[:, :, None]
    # Channels are independent: a BGR view of RGB is resized as RGB, without copying it first.
    step = -1 if img.ndim == 3 and img.strides[2] < 0 else 1
    return np.asarray(Image.fromarray(img[..., ::step]).resize((w, h), interp))[..., ::step]


def _resize_float(img: np.ndarray, h: int, w: int, interp: int) -> np.ndarray:
    chw = torch.from_numpy(np.ascontiguousarray(img)).reshape(*img.shape[:2], -1).permute(2, 0, 1)
    mode = _INTERPOLATE_MODE[interp]
    out = F.interpolate(chw[None], (h, w), mode=mode, align_corners=None if mode == "nearest" else False)[0]
    return out.permute(1, 2, 0).reshape(h, w, *img.shape[2:]).numpy()
