"""A feature pyramid of MODEL.FPN around any backbone."""

from typing import Any

from torch import nn

from detectron2.config import CfgNode
from detectron2.modeling.backbone import FPN, Backbone


def build_fpn(
    cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module, fpn_class: type[FPN] = FPN, **kwargs: Any
) -> FPN:
    """`fpn_class` of `bottom_up`'s maps MODEL.FPN.IN_FEATURES, with `top_block` for the coarser levels.

    kwargs: what `fpn_class` has besides.
    """
    fpn = cfg.MODEL.FPN
    shared = {"norm": fpn.NORM, "top_block": top_block, "fuse_type": fpn.FUSE_TYPE}
    return fpn_class(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, **shared, **kwargs)
