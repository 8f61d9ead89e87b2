"""Soft RoI pooling ("Aggregation with Feature Detection", ICCV 2021)."""

from .op import soft_roi_pool
from .reference import soft_roi_pool_reference

__all__ = ["soft_roi_pool", "soft_roi_pool_reference"]
