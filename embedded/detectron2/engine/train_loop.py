"""The training loop: trainers and the interface of hooks."""

import concurrent.futures
import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
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
        hook.after_train()        # also after an exception

    `trainer` (a weak proxy) is set when the hook is registered.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_step(self) -> None:
        pass

    def after_backward(self) -> None:
        pass

    def after_step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of this hook; `load_state_dict` takes it back."""
        return {}


class TrainerBase:
    """A loop with hooks; subclasses implement `run_step`.

    Attributes: iter (current one, max_iter after a complete run), start_iter, max_iter,
    storage (EventStorage, while training).
    """

    def __init__(self):
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks; they run in this order. None is skipped."""
        hooks = [h for h in hooks if h is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase), f"{hook!r} is no HookBase."
            hook.trainer = weakref.proxy(self)  # the trainer owns the hook, not also inversely
        self._hooks.extend(hooks)

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

    def before_train(self) -> None:
        for h in self._hooks:
            h.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for h in self._hooks:
            h.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for h in self._hooks:
            h.before_step()

    def after_backward(self) -> None:
        for h in self._hooks:
            h.after_backward()

    def after_step(self) -> None:
        for h in self._hooks:
            h.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"iteration": self.iter}
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            if hook_state:
                hooks.setdefault(type(hook).__qualname__, hook_state)  # the first of a class
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            for hook in self._hooks:
                if type(hook).__qualname__ == name:
                    hook.load_state_dict(hook_state)
                    break
            else:
                logger.warning(f"No hook {name} is registered: its state is ignored.")


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one data loader; single or data parallel."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        """The model returns a dict of losses, or one loss; it is set to training mode. Metrics
        are gathered every gather_metric_period iterations (async: by a thread)."""
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._iterator = None  # made at the first step, since it may start worker processes
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._writer_thread = concurrent.futures.ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._pending_write: Callable[[], None] = lambda: None

    @property
    def _data_loader_iter(self):
        if self._iterator is None:
            self._iterator = iter(self.data_loader)
        return self._iterator

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the loader (and its workers), then go on with a new one."""
        self.data_loader = self._iterator = None
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
            metrics = (loss_dict, data_time, self.iter)
            if self._writer_thread is None:
                self.write_metrics(*metrics)
            else:
                self._pending_write()  # an error of the last write ends training here
                future = self._writer_thread.submit(self.write_metrics, *metrics)
                self._pending_write = future.result
        self._optimizer_step()

    def _autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def _backward(self, losses: torch.Tensor) -> None:
        losses.backward()

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    def after_train(self) -> None:
        if self._writer_thread is not None:
            self._writer_thread.shutdown(wait=True)
        super().after_train()

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the losses (mean over ranks), their sum and data_time (slowest rank) into the
        storage of the main process. FloatingPointError if the sum is not finite."""
        metrics = {k: v.detach().cpu().item() for k, v in loss_dict.items()}
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather({**metrics, "data_time": data_time})
        if not comm.is_main_process():
            return
        slowest = np.max([m.pop("data_time") for m in gathered])
        storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
        means = {k: np.mean([m[k] for m in gathered]) for k in metrics}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}! loss_dict = {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        for name, value in means.items():
            if name != f"{prefix}total_loss":
                storage.put_scalar(name, value, cur_iter=cur_iter)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer with automatic mixed precision on a GPU."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ):
        """precision: of the forward pass; log_grad_scaler: put its scale as a metric."""
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.grad_scaler = grad_scaler or torch.amp.GradScaler("cuda")
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        super().run_step()

    def _autocast(self) -> contextlib.AbstractContextManager:
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
