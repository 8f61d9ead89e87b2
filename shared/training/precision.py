"""Mixed precision training: its types, and the trainer of each."""

from collections.abc import Iterable

import torch
from torch import nn

from detectron2.engine import AMPTrainer, SimpleTrainer
from shared.errors import UserError

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(enabled: bool, name: str, key: str) -> torch.dtype | None:
    """What mixed precision computes in, None where it is off. key: that holds `name`, for the UserError of others."""
    if name not in AMP_DTYPES:
        raise UserError(f"{key} is {name!r}: choose one of {', '.join(AMP_DTYPES)}.")
    return AMP_DTYPES[name] if enabled else None


class AutocastForward(nn.Module):
    """A model whose forward pass runs under autocast, and only that."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, batched_inputs: list[dict]):
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.dtype):
            return self.model(batched_inputs)


def make_trainer(
    model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, amp: torch.dtype | None
) -> SimpleTrainer:
    """Detectron2's trainer for the precision: float16 has its AMPTrainer, which scales the loss and wants a GPU.
    bfloat16 has float32's range: no scale, and any device."""
    if amp is None:
        return SimpleTrainer(model, loader, optimizer)
    if amp == torch.bfloat16:
        return SimpleTrainer(AutocastForward(model, amp), loader, optimizer)
    return AMPTrainer(model, loader, optimizer, precision=amp)
