"""Learning rate multipliers; their length is train.max_iter, whatever the command line makes it."""

from detectron2.config import LazyCall as L
from shared.solver import cosine_schedule, step_schedule

steps = L(step_schedule)(
    max_iter="${train.max_iter}",
    drops=[2 / 3, 8 / 9],  # 60k and 80k of 90k
    gamma=0.1,
    warmup_iters=1000,
    warmup_factor=0.001,
)

cosine = L(cosine_schedule)(max_iter="${train.max_iter}", end_value=0.0, warmup_iters=1000, warmup_factor=0.001)
