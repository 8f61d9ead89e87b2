"""The collection's own building block under Detectron2's path."""

from .......configs.common.models.mask_rcnn_fpn import model  # noqa
