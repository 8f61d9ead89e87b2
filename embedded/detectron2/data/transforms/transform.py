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
        assert img.shape[:2] == (self.h, self.w), (
            f"This transform resizes {self.h}x{self.w} (HxW), got shape {img.shape}."
        )
        interp = self.interp if interp is None else interp
        if (self.h, self.w) == (self.new_h, self.new_w):
            return img
        if img.dtype == np.uint8:
            return self._resize_uint8(img, interp)
        return self._resize_float(img, interp)

    def _resize_uint8(self, img: np.ndarray, interp: int) -> np.ndarray:
        if img.ndim == 3 and img.shape[2] == 1:
            return self._resize_uint8(img[:, :, 0], interp)[:, :, None]
        # Channels are independent: a BGR view of RGB is resized as RGB, without copying it first.
        step = -1 if img.ndim == 3 and img.strides[2] < 0 else 1
        pil = Image.fromarray(img[..., ::step] if img.ndim == 3 else img)
        out = np.asarray(pil.resize((self.new_w, self.new_h), interp))
        return out[..., ::step] if img.ndim == 3 else out

    def _resize_float(self, img: np.ndarray, interp: int) -> np.ndarray:
        chw = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1).permute(2, 0, 1)
        mode = _INTERPOLATE_MODE[interp]
        align = None if mode == "nearest" else False
        size = (self.new_h, self.new_w)
        out = F.interpolate(chw[None], size, mode=mode, align_corners=align)[0]
        return out.permute(1, 2, 0).reshape(*size, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """coords: (N, 2) xy, scaled in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)
