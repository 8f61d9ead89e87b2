"""The collection's own building block under Detectron2's path."""

from ......configs.common.train import detectron2_train as train  # noqa
