"""Cascade R-CNN without masks."""

from .cascade_rcnn import model

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(key)
