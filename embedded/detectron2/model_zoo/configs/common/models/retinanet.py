"""The collection's own building block under Detectron2's path."""

from .......configs.common.models.retinanet import model  # noqa
