"""Detectron2's schedules for COCO at 16 images a step; 1x is 90k steps, about 12 epochs."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler


def default_X_scheduler(num_X):
    """Multi-step schedule of num_X times 90k steps with a linear warm-up of 1000 steps."""
    steps = 90000 * num_X
    if num_X <= 2:  # scale-free, as in arXiv:1703.06870
        milestones = [60000, 80000, 90000]
    else:  # the last 60k and 20k steps, as in arXiv:1811.08883
        milestones = [steps - 60000, steps - 20000, steps]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=milestones),
        warmup_length=1000 / steps,
        warmup_method="linear",
        warmup_factor=0.001,
    )


lr_multiplier_1x = default_X_scheduler(1)
lr_multiplier_2x = default_X_scheduler(2)
lr_multiplier_3x = default_X_scheduler(3)
lr_multiplier_6x = default_X_scheduler(6)
lr_multiplier_9x = default_X_scheduler(9)
