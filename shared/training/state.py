"""What a run is besides weights and average: the entries "trainer" and "run" of its checkpoints."""

import logging
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from shared.errors import CommonError
from shared.training import metrics

logger = logging.getLogger(__name__)

Numbers = dict[str, dict[str, bool | int | float]]  # module, attribute, value
MISSING = object()
# Of torch's optimizers; what else stands in a group may be part of an optimizer's state
SETTINGS = (
    *("lr", "weight_decay", "momentum", "dampening", "nesterov"),
    *("betas", "eps", "alpha", "lr_decay", "amsgrad", "decoupled_weight_decay"),
)


class ModelRemainder:
    """What training changes in a model and its state dict does not hold: numbers in plain attributes, such as the
    moving average of a dense detector's loss normalizer, and buffers that are not persistent.

    A module that is to begin a resumed run without some of these buffers names them in `not_resumed`.
    """

    def __init__(self, model: nn.Module):
        """Before training: what differs from now on has been changed by it."""
        self._model = model
        self._persistent = set(model.state_dict())
        self._left_out = {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            for name in getattr(module, "not_resumed", ())
        }
        self._numbers = self._all_numbers()
        self._buffers = {name: x.clone() for name, x in model.named_buffers() if name not in self._persistent}

    def _all_numbers(self) -> Numbers:
        return {
            path: {k: v for k, v in vars(module).items() if type(v) in (bool, int, float) and k != "training"}
            for path, module in self._model.named_modules()
        }

    def state_dict(self, persistent: bool) -> dict[str, Any]:
        """On the CPU. persistent: also all other buffers, for the processes whose own are in no state dict."""
        numbers: Numbers = {}
        for path, values in self._all_numbers().items():
            before = self._numbers.get(path, {})
            if changed := {k: v for k, v in values.items() if before.get(k, MISSING) != v}:
                numbers[path] = changed
        buffers = {
            name: x.detach().cpu().clone()
            for name, x in self._model.named_buffers()
            if name not in self._left_out
            and (
                persistent if name in self._persistent else not torch.equal(x, self._buffers.get(name, x.new_empty(0)))
            )
        }
        return {"numbers": numbers, "buffers": buffers}

    def drop_own(self, buffers: dict[str, Tensor]) -> None:
        """From another process's buffers take those that this model's state dict holds with the same values."""
        own = dict(self._model.named_buffers())
        for name in self._persistent & set(buffers):
            if torch.equal(buffers[name], own[name].cpu()):
                del buffers[name]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        modules, buffers = dict(self._model.named_modules()), dict(self._model.named_buffers())
        for path, values in state["numbers"].items():
            for name, value in values.items():
                if path in modules:
                    setattr(modules[path], name, value)
        for name, value in state["buffers"].items():
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)


class TrainerState:
    """The trainer's iteration, optimizer and hooks. Where the config has other `SETTINGS` of the optimizer than the run
    had, the config's count, with a warning: `--resume optimizer.lr=0.01` is obeyed."""

    def __init__(self, trainer: SimpleTrainer, scheduler: ParamScheduler | LRScheduler):
        self._trainer, self._scheduler = trainer, scheduler
        self._wanted = [_settings(group) for group in trainer.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return self._trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """UserError where the optimizer is another one, or has other groups of parameters."""
        optimizer = self._trainer.optimizer
        self._require_same_optimizer(state["optimizer"]["param_groups"])
        self._trainer.load_state_dict(state)
        changed = {}
        for group, wanted in zip(optimizer.param_groups, self._wanted):
            for key, old in _settings(group).items():
                if (new := wanted.get(key, old)) != old:
                    changed[f"{key} {new} (it was {old})"] = None
                    _set(group, key, new)
        if not changed:
            return
        logger.warning("The optimizer goes on with other values than the run had: %s.", ", ".join(changed))
        if isinstance(self._scheduler, LRScheduler):  # a ParamScheduler finds its base in the groups
            self._scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def _require_same_optimizer(self, saved: list[dict]) -> None:
        ours = self._trainer.optimizer.param_groups
        odd = sorted({k for a, b in zip(saved, ours) for k in _numbers(a) ^ _numbers(b)})
        if odd:
            raise CommonError(
                f"The config's optimizer {type(self._trainer.optimizer).__name__} is another one than the run's: only "
                f"one of them has {', '.join(odd)}. --resume needs the run's, or begin a new run from its weights."
            )
        sizes = [[len(group["params"]) for group in groups] for groups in (saved, ours)]
        if sizes[0] != sizes[1]:
            raise CommonError(
                f"The config puts {' + '.join(map(str, sizes[1]))} parameters into the optimizer's groups, the run had "
                f"{' + '.join(map(str, sizes[0]))}: --resume needs the same frozen layers, and the same special "
                f"learning rates and weight decays of norms and biases."
            )


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer's group was made with: "lr" before any schedule."""
    settings = {k: tuple(group[k]) if isinstance(group[k], list) else group[k] for k in SETTINGS if k in group}
    return {**settings, "lr": group.get("initial_lr", group["lr"])}


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    """A learning rate keeps its place in the schedule."""
    if key == "lr" and "initial_lr" in group:
        base, group["initial_lr"] = group["initial_lr"], value
        value = value * (group["lr"] / base) if base else value
    group[key] = value


def _numbers(group: dict[str, Any]) -> set[str]:
    """Names of the settings that tell one optimizer from another; flags come and go with torch's versions."""
    return {k for k, v in _settings(group).items() if type(v) in (int, float, tuple)}


class RunState:
    """Seed, remainders of the models of every process, and metrics. `collect` takes them from the running training, for
    the next checkpoints of the same iteration."""

    def __init__(self, seed: int, models: dict[str, nn.Module], writer: metrics.MetricsFile):
        """models: this process's, by any name. writer: that of the main process writes."""
        self.seed, self.writer = seed, writer
        self._remainders = {name: ModelRemainder(model) for name, model in models.items()}
        self._collected: dict[str, Any] | None = None
        self._loaded_metrics: dict = {}
        self.was_loaded = False

    def collect(self, storage: EventStorage) -> None:
        """Every process must call it."""
        main = comm.is_main_process()
        processes = comm.gather({name: r.state_dict(persistent=not main) for name, r in self._remainders.items()})
        if not main:
            return
        for process in processes[1:]:
            for name, remainder in self._remainders.items():
                remainder.drop_own(process[name]["buffers"])
        self._collected = {
            "seed": self.seed,
            "processes": processes,
            "metrics": {"last_write": self.writer.last_write, "storage": metrics.state_of(storage)},
        }

    def state_dict(self) -> dict[str, Any]:
        assert self._collected is not None, "collect() comes before a checkpoint"
        return self._collected

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The seed is for who builds the run, see `shared.training.resume`."""
        processes = state["processes"]
        if len(processes) != comm.get_world_size():
            logger.warning(
                "The run had %d processes and has %d now: it goes on, but not bit for bit.",
                len(processes),
                comm.get_world_size(),
            )
        mine = processes[comm.get_rank() if len(processes) == comm.get_world_size() else 0]
        for name, remainder in self._remainders.items():
            if name in mine:
                remainder.load_state_dict(mine[name])
        self._loaded_metrics = state["metrics"]
        self.was_loaded = True

    def resume_metrics(self, storage: EventStorage, start_iter: int) -> None:
        """Put metrics.json and the storage back to where the checkpoint was written; start_iter: 0 of a new run."""
        if comm.is_main_process():
            self.writer.go_back_to(self._loaded_metrics.get("last_write", start_iter - 1))
            metrics.restore(storage, self._loaded_metrics.get("storage", {}))
        self._loaded_metrics = {}
