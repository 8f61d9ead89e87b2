"""Learning rate schedules: base rate times a fvcore ParamScheduler of the training's fraction."""

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupParamScheduler(CompositeParamScheduler):
    """Warm up from `warmup_factor * scheduler(0)` to where `scheduler` goes on ("linear"), or stay there ("constant").
    warmup_length: a fraction of training; rescale_interval: squeeze the whole scheduler into what is left after the
    warm-up, instead of cutting its beginning off."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        start, end = warmup_factor * scheduler(0.0), scheduler(0.0 if rescale_interval else warmup_length)
        warmups = {"linear": LinearParamScheduler(start, end), "constant": ConstantParamScheduler(start)}
        if warmup_method not in warmups:
            raise ValueError(f"Unknown warmup method: {warmup_method}. Use 'linear' or 'constant'.")
        super().__init__(
            [warmups[warmup_method], scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """lr = base lr of the group * multiplier(step / max_iter). last_iter: where training stopped, -1 for a new run."""

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"LRMultiplier needs a fvcore ParamScheduler as multiplier, got {multiplier!r}.")
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        """Without the schedule itself: that one comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [lr * factor for lr in self.base_lrs]
