"""Registry and builder of backbones."""

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """The registered backbone `cfg.MODEL.BACKBONE.NAME`, for images like PIXEL_MEAN by default."""
    name, input_shape = cfg.MODEL.BACKBONE.NAME, input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    assert isinstance(backbone, Backbone), f"{name} must return a Backbone, got {type(backbone).__name__}."
    return backbone
