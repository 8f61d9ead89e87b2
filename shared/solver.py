"""Schedules that know their length only at instantiation, and whole-model gradient clipping."""

from collections.abc import Sequence

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from detectron2.solver import WarmupParamScheduler


def step_schedule(
    max_iter: int,
    drops: Sequence[float] = (2 / 3, 8 / 9),
    gamma: float = 0.1,
    warmup_iters: int = 1000,
    warmup_factor: float = 0.001,
) -> WarmupParamScheduler:
    """Multiplier 1, gamma, gamma^2, ... with a drop at each fraction of `max_iter` in `drops`.

    The default drops are those of Detectron2's 1x (60k and 80k of 90k) at any length. The warm-up is
    linear over `warmup_iters` steps, at most the whole run.
    """
    if max_iter <= 0:
        raise ValueError(f"step_schedule: max_iter must be positive, got {max_iter}.")
    if list(drops) != sorted(drops) or not all(0 < d < 1 for d in drops):
        raise ValueError(f"step_schedule: drops must rise within (0, 1), got {list(drops)}.")
    values = {0: 1.0}  # by first iteration; drops that fall together in a short run count as one
    values.update({round(d * max_iter): gamma**i for i, d in enumerate(drops, start=1)})
    values = {start: value for start, value in values.items() if start < max_iter}
    scheduler = MultiStepParamScheduler(values=list(values.values()), milestones=list(values)[1:], num_updates=max_iter)
    return _with_warmup(scheduler, max_iter, warmup_iters, warmup_factor)


def cosine_schedule(
    max_iter: int, end_value: float = 0.0, warmup_iters: int = 1000, warmup_factor: float = 0.001
) -> WarmupParamScheduler:
    """Half a cosine from 1 to `end_value` over `max_iter` steps, after a linear warm-up."""
    if max_iter <= 0:
        raise ValueError(f"cosine_schedule: max_iter must be positive, got {max_iter}.")
    return _with_warmup(CosineParamScheduler(1.0, end_value), max_iter, warmup_iters, warmup_factor)


def _with_warmup(scheduler, max_iter, warmup_iters, warmup_factor):
    return WarmupParamScheduler(
        scheduler, warmup_factor=warmup_factor, warmup_length=min(warmup_iters / max_iter, 1.0), warmup_method="linear"
    )


def iterations(max_iter: int, share: float) -> int:
    """Steps in `share` of a run: a phase with `max_iter=${train.max_iter}` keeps its place at any length."""
    if not 0 <= share <= 1:
        raise ValueError(f"iterations: share must be in [0, 1], got {share}.")
    return round(share * max_iter)


def clip_global_norm(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.optim.Optimizer:
    """Make `optimizer.step` first scale all gradients together to an L2 norm of at most `max_norm`.

    Detectron2's own "norm" clips each parameter by itself, which changes the gradient's direction.
    In the step rather than in a hook, so that under mixed precision gradients are unscaled by then.
    The class is swapped in place: param groups, state and state_dict stay those of the optimiser.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_global_norm: max_norm must be positive, got {max_norm}.")
    base = type(optimizer)

    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(params, max_norm)
        return base.step(self, closure)

    optimizer.__class__ = type(f"{base.__name__}WithGlobalNormClip", (base,), {"step": step})
    return optimizer
