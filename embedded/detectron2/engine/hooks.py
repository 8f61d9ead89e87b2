"""The standard hooks: timing, learning rate, checkpoints, evaluation, writing of metrics."""

import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from fvcore.common import checkpoint
from fvcore.common.param_scheduler import ParamScheduler

from detectron2 import solver
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .train_loop import HookBase

logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """A hook from functions of the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        events = ("before_train", "after_train", "before_step", "after_step")
        for event, callback in zip(events, (before_train, after_train, before_step, after_step)):
            if callback is not None:
                setattr(self, event, lambda callback=callback: callback(self.trainer))


class IterationTimer(HookBase):
    """Puts the scalar `time` (seconds of a step, without hooks) and logs the speed at the end.
    Register it first. warmup_iter: the first iteration, counted from 1, that is timed."""

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter, self._count, self._total = warmup_iter, 0, 0.0

    def before_step(self):
        self._start = time.perf_counter()

    def after_step(self):
        if self.trainer.iter - self.trainer.start_iter + 1 >= self._warmup_iter:
            seconds = time.perf_counter() - self._start
            self.trainer.storage.put_scalars(time=seconds)
            self._count, self._total = self._count + 1, self._total + seconds

    def after_train(self):
        if self._count:
            speed = f"{self._count} iterations in {timedelta(seconds=int(self._total))}"
            logger.info(f"Overall training speed: {speed} ({self._total / self._count:.4f} s / it)")


class PeriodicWriter(HookBase):
    """Lets the writers write every `period` iterations, at the last one, and at the end."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        assert all(isinstance(w, EventWriter) for w in writers), f"Not all of {writers} are EventWriters."
        self._writers, self._period = writers, period

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self):
        for writer in self._writers:
            writer.write()  # what hooks put after the last step, for example an evaluation
            writer.close()


class PeriodicCheckpointer(checkpoint.PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer: {prefix}_{iteration:07d}, and {prefix}_final at the end."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        self.step(self.trainer.iter)


class LRScheduler(HookBase):
    """Logs the learning rate, then steps the scheduler, after every iteration. Defaults: the trainer's.
    A ParamScheduler is a multiplier of the base learning rate over the whole training."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: solver.LRScheduler | ParamScheduler | None = None,
    ):
        self._optimizer, self._scheduler = optimizer, scheduler

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def before_train(self):
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            last_iter = self.trainer.iter - 1
            self._scheduler = solver.LRMultiplier(self._optimizer, self.scheduler, self.trainer.max_iter, last_iter)
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The first group with most parameters or, if every group has but one, with the most common learning rate."""
        sizes = [len(g["params"]) for g in optimizer.param_groups]
        rates = [g["lr"] for g in optimizer.param_groups]
        return sizes.index(max(sizes)) if max(sizes) > 1 else rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self):
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, solver.LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load into a ParamScheduler: `before_train` starts it at trainer.iter."""
        if isinstance(self.scheduler, solver.LRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class _Periodic(HookBase):
    """Calls `_run` every `period` iterations (0: never), and after a complete training."""

    _period: int

    def after_step(self):
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._run()

    def after_train(self):
        if self.trainer.iter >= self.trainer.max_iter:
            self._run()


class EvalHook(_Periodic):
    """Evaluates every `eval_period` iterations (0: never), and after a complete training.
    eval_function: returns a nested dict of numbers, or None; runs on all workers, which then wait for each other."""

    def __init__(
        self, eval_period: int, eval_function: Callable[[], dict[str, Any] | None], eval_after_train: bool = True
    ):
        self._period, self._func, self._eval_after_train = eval_period, eval_function, eval_after_train

    def _run(self):
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict, got {results}."
            scalars = flatten_results_dict(results)
            for name, value in scalars.items():
                try:
                    scalars[name] = float(value)
                except (TypeError, ValueError) as e:
                    wrong = f"Got '{name}: {value}' instead."
                    raise ValueError(f"[EvalHook] eval_function should return a nested dict of float. {wrong}") from e
            self.trainer.storage.put_scalars(smoothing_hint=False, **scalars)
        comm.synchronize()  # workers may take different times

    def after_train(self):
        if self._eval_after_train:
            super().after_train()


class BestCheckpointer(_Periodic):
    """Saves the model whenever a metric of the storage, e.g. "bbox/AP", is the best so far. Must follow EvalHook."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: checkpoint.Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        assert mode in ("max", "min"), f'Mode "{mode}" to BestCheckpointer: use "max" or "min".'
        self._period, self._checkpointer = eval_period, checkpointer
        self._val_metric, self._file_prefix = val_metric, file_prefix
        self._is_better = operator.gt if mode == "max" else operator.lt
        self.best_metric: float | None = None

    def _run(self):
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            logger.warning(f"No metric {self._val_metric!r} is stored: no best checkpoint by it.")
            return
        value, iteration = latest[self._val_metric]
        if math.isfinite(value) and (self.best_metric is None or self._is_better(value, self.best_metric)):
            logger.info(f"Best {self._val_metric}: {value:.5f}, before {self.best_metric}")
            self.best_metric = value
            self._checkpointer.save(self._file_prefix, iteration=iteration)
