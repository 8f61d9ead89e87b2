"""The collection's own building block under Detectron2's path."""

from ......configs.common.coco_schedule import (  # noqa
    default_X_scheduler,
    lr_multiplier_1x,
    lr_multiplier_2x,
    lr_multiplier_3x,
    lr_multiplier_6x,
    lr_multiplier_9x,
)
