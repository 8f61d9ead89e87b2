"""The collection's own building block under Detectron2's path."""

from .......configs.common.models.fcos import model  # noqa
