"""The training loop: trainers and the interface of hooks."""

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial, partialmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)


class HookBase:
    """What a trainer calls around its steps:
    hook.before_train()
    for each iteration:
        hook.before_step()
        trainer.run_step()    # calls hook.after_backward() of its own hooks
        hook.after_step()
    hook.after_train()        # also after an exception"""

    trainer: "TrainerBase" = None  # a weak proxy, set when the hook is registered

    def before_train(self) -> None: ...
    def after_train(self) -> None: ...
    def before_step(self) -> None: ...
    def after_backward(self) -> None: ...
    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of this hook; `load_state_dict` takes it back."""
        return {}


class TrainerBase:
    """A loop with hooks; subclasses implement `run_step`.
    Attributes: iter (current one, max_iter after a complete run), start_iter, max_iter, storage (while training)."""

    def __init__(self):
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks; they run in this order. None is skipped."""
        for hook in filter(None, hooks):
            assert isinstance(hook, HookBase), f"{hook!r} is no HookBase."
            hook.trainer = weakref.proxy(self)  # the trainer owns the hook, not also inversely
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations start_iter .. max_iter - 1."""
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max_iter  # tells after_train that training is complete
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def _call_hooks(self, event: str) -> None:
        for hook in self._hooks:
            getattr(hook, event)()

    before_train = partialmethod(_call_hooks, "before_train")
    after_backward = partialmethod(_call_hooks, "after_backward")
    after_step = partialmethod(_call_hooks, "after_step")

    def before_step(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        # of several hooks of a class, the first
        hooks = {type(h).__qualname__: state for h in reversed(self._hooks) if (state := h.state_dict())}
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        first = {type(h).__qualname__: h for h in reversed(self._hooks)}
        for name, hook_state in state_dict.get("hooks", {}).items():
            if name in first:
                first[name].load_state_dict(hook_state)
            else:
                logger.warning(f"No hook {name} is registered: its state is ignored.")


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one data loader; single or data parallel.
    The model returns a dict of losses, or one loss; it is set to training mode. Metrics are gathered every
    gather_metric_period iterations; with async_write_metrics by a thread, whose error ends training at its next use."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        super().__init__()
        self.model, self.data_loader, self.optimizer = model.train(), data_loader, optimizer
        self.gather_metric_period, self.zero_grad_before_forward = gather_metric_period, zero_grad_before_forward
        self._writer_thread = ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._last_write = None

    @cached_property
    def _data_loader_iter(self):
        return iter(self.data_loader)  # at the first step, since it may start worker processes

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the loader (and its workers), then go on with a new one."""
        self.data_loader = None
        self.__dict__.pop("_data_loader_iter", None)
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        assert self.model.training, f"[{type(self).__name__}] the model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with self._autocast():
            loss_dict = self.model(data)
            if isinstance(loss_dict, torch.Tensor):
                loss_dict = {"total_loss": loss_dict}
            losses = sum(loss_dict.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(losses)
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            self._write_metrics(loss_dict, data_time, self.iter)
        self._optimizer_step()

    def _autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _backward(self, losses: torch.Tensor) -> None:
        losses.backward()

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    def after_train(self) -> None:
        if self._writer_thread:
            self._writer_thread.shutdown()
        super().after_train()

    def _write_metrics(self, *metrics) -> None:
        if not self._writer_thread:
            return self.write_metrics(*metrics)
        if self._last_write:
            self._last_write.result()
        self._last_write = self._writer_thread.submit(self.write_metrics, *metrics)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the losses (mean over ranks), their sum and data_time (slowest rank) into the storage of the main
        process. FloatingPointError if the sum is not finite."""
        put = partial(get_event_storage().put_scalar, cur_iter=cur_iter)
        put("rank_data_time", data_time)
        losses = {k: v.item() for k, v in loss_dict.items()}
        gathered = comm.gather((losses, data_time))
        if not comm.is_main_process():
            return
        put("data_time", max(seconds for _, seconds in gathered))
        means = {k: np.mean([values[k] for values, _ in gathered]) for k in losses}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}! loss_dict = {means}")
        put(f"{prefix}total_loss", total)
        means.pop(f"{prefix}total_loss", None)
        for name, value in means.items():
            put(name, value)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer with automatic mixed precision on a GPU.
    precision: of the forward pass; log_grad_scaler: put the scale as a metric."""

    def __init__(
        self, *args, grad_scaler=None, precision: torch.dtype = torch.float16, log_grad_scaler: bool = False, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.grad_scaler = grad_scaler or torch.amp.GradScaler("cuda")
        self.precision, self.log_grad_scaler = precision, log_grad_scaler

    def _autocast(self) -> contextlib.AbstractContextManager:
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        return torch.autocast("cuda", dtype=self.precision)

    def _backward(self, losses: torch.Tensor) -> None:
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _optimizer_step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
