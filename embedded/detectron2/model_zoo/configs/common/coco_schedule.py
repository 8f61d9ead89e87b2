"""Detectron2's schedules for COCO at 16 images a step; 1x is 90k steps, about 12 epochs."""

from fvcore.common.param_scheduler import MultiStepParamScheduler

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler


def default_X_scheduler(num_X):
    """num_X times 90k steps, with a linear warm-up of 1000 steps."""
    steps = 90000 * num_X
    # up to 2x scale-free (arXiv:1703.06870), then the last 60k and 20k steps (arXiv:1811.08883)
    milestones = [60000, 80000, 90000] if num_X <= 2 else [steps - 60000, steps - 20000, steps]
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=milestones),
        warmup_length=1000 / steps,
        warmup_method="linear",
        warmup_factor=0.001,
    )


lr_multiplier_1x, lr_multiplier_2x, lr_multiplier_3x = map(default_X_scheduler, (1, 2, 3))
lr_multiplier_6x, lr_multiplier_9x = map(default_X_scheduler, (6, 9))
