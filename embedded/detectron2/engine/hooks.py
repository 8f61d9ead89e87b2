"""The standard hooks: timing, learning rate, checkpoints, evaluation, writing of metrics."""

import datetime
import logging
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as TorchLRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .train_loop import HookBase, TrainerBase

logger = logging.getLogger(__name__)

Callback = Callable[[TrainerBase], None]


class CallbackHook(HookBase):
    """A hook from functions of the trainer."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ):
        self._callbacks = [before_train, after_train, before_step, after_step]

    def _call(self, i: int):
        if self._callbacks[i]:
            self._callbacks[i](self.trainer)

    def before_train(self):
        self._call(0)

    def after_train(self):
        self._call(1)
        self._callbacks.clear()  # they may hold the trainer, which would then hold itself

    def before_step(self):
        self._call(2)

    def after_step(self):
        self._call(3)


class IterationTimer(HookBase):
    """Puts the scalar `time` (seconds of a step, without hooks) and logs the speed at the end.

    Register it first. warmup_iter: the first iteration, counted from 1, that is timed.
    """

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()

    def before_train(self):
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self):
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self):
        if self.trainer.iter - self.trainer.start_iter + 1 >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self):
        num_iter = self.trainer.storage.iter - self.trainer.start_iter - self._warmup_iter + 1
        seconds = self._total_timer.seconds()
        if num_iter > 0:
            logger.info(
                f"Overall training speed: {num_iter} iterations in "
                f"{datetime.timedelta(seconds=int(seconds))} ({seconds / num_iter:.4f} s / it)"
            )


class PeriodicWriter(HookBase):
    """Lets the writers write every `period` iterations, at the last one, and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        for w in writers:
            assert isinstance(w, EventWriter), f"{w!r} is no EventWriter."
        self._writers = writers
        self._period = period

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self):
        for writer in self._writers:
            writer.write()  # what hooks put after the last step, for example an evaluation
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer: {prefix}_{iteration:07d}, and {prefix}_final at the end."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        self.step(self.trainer.iter)


class LRScheduler(HookBase):
    """Logs the learning rate, then steps the scheduler, after every iteration."""

    def __init__(
        self, optimizer: torch.optim.Optimizer | None = None, scheduler: TorchLRScheduler | ParamScheduler | None = None
    ):
        """Default: the trainer's. A ParamScheduler is a multiplier of the base learning rate
        over the whole training."""
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def before_train(self):
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, self.trainer.iter - 1
            )
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose learning rate stands for all: the first with most parameters or, if
        every group has but one, the first with the most common rate."""
        groups = optimizer.param_groups
        largest = max(len(g["params"]) for g in groups)
        if largest == 1:
            common_lr = Counter(g["lr"] for g in groups).most_common()[0][0]
            return [g["lr"] for g in groups].index(common_lr)
        return [len(g["params"]) for g in groups].index(largest)

    def after_step(self):
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return scheduler.state_dict() if isinstance(scheduler, TorchLRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load into a ParamScheduler: `before_train` starts it at trainer.iter."""
        if isinstance(self.scheduler, TorchLRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every `eval_period` iterations, and after a complete training."""

    def __init__(
        self, eval_period: int, eval_function: Callable[[], dict[str, Any] | None], eval_after_train: bool = True
    ):
        """eval_period: 0 for none; eval_function: returns a nested dict of numbers, or None.

        It runs on all workers, which wait for each other afterwards.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self):
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict, got {results}."
            scalars = flatten_results_dict(results)
            for name, value in scalars.items():
                try:
                    scalars[name] = float(value)
                except (TypeError, ValueError) as e:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from e
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)
        comm.synchronize()  # workers may take different times

    def after_step(self):
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self):
        if self._eval_after_train and self.trainer.iter >= self.trainer.max_iter:
            self._do_eval()
        self._func = None  # it often holds the trainer


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is better than ever. Register it after EvalHook."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        """val_metric: as in the storage, for example "bbox/AP50"; mode: "max" or "min"."""
        assert mode in ("max", "min"), f'Mode "{mode}" to BestCheckpointer: use "max" or "min".'
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None

    def _best_checking(self):
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning(f"No metric {self._val_metric!r} is stored: no best checkpoint by it.")
            return
        value, iteration = latest
        if not math.isfinite(value):
            return
        if self.best_metric is None or self._is_better(value, self.best_metric):
            logger.info(f"Best {self._val_metric}: {value:.5f}, before {self.best_metric}")
            self.best_metric = value
            self._checkpointer.save(self._file_prefix, iteration=iteration)

    def after_step(self):
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._best_checking()

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:
            self._best_checking()
