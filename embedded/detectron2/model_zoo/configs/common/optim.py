"""The collection's own building block under Detectron2's path."""

from ......configs.common.optim import SGD, AdamW  # noqa
