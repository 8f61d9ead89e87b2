"""Exponential moving average of a model's weights."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """average = decay * average + (1 - decay) * model after every step, batch norm's statistics included. Other buffers
    are copied: counts and memories of features have no average.

    A checkpoint's "model" is the average: that is what is evaluated, and what predicts or starts another training.
    The weights in training are in its entry "ema", which only --resume reads.
    """

    def __init__(self, model: nn.Module, decay: float):
        """ValueError unless decay is in [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"train.ema.decay must be in [0, 1), got {decay}.")
        self._model = model
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._resumed = False

    @property
    def averaged(self) -> nn.Module:
        """A model of the same class; its tensors change in place."""
        return self._average.module

    def update(self) -> None:
        """After each step. The first one copies the model."""
        self._average.update_parameters(self._model)
        for average, module in zip(self.averaged.modules(), self._model.modules()):
            if not isinstance(module, _BatchNorm):
                for mine, theirs in zip(average.buffers(recurse=False), module.buffers(recurse=False)):
                    mine.copy_(theirs)

    def begin(self) -> None:
        """Weights have been loaded into `averaged`: train on from them, unless a run is resumed."""
        if not self._resumed:
            self._model.load_state_dict(self.averaged.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"trained_model": self._model.state_dict(), "updates": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._model.load_state_dict(state["trained_model"])
        self._average.n_averaged.copy_(torch.tensor(state["updates"]))
        self._resumed = True
