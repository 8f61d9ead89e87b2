"""Torch layers and functions with the extras that detection code relies on."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = "BatchNorm2d Conv2d ConvTranspose2d Linear cat cross_entropy empty_input_loss_func_wrapper".split()
__all__ += "interpolate move_device_like nonzero_tuple shapes_to_tensor".split()

BatchNorm2d, ConvTranspose2d, Linear, interpolate = nn.BatchNorm2d, nn.ConvTranspose2d, nn.Linear, F.interpolate


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` followed by an optional `norm` module and `activation` callable."""

    def __init__(self, *args, norm: nn.Module | None = None, activation: Callable | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W), N may be 0 unless the norm is a SyncBatchNorm in training."""
        sync = self.training and isinstance(self.norm, nn.SyncBatchNorm)
        assert x.numel() > 0 or not sync, "SyncBatchNorm cannot train on an empty batch; use 'naiveSyncBN_N' or 'GN'."
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`; a single tensor is returned itself, without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable) -> Callable:
    """Make the mean over no targets 0, with a graph, instead of nan."""

    @wraps(loss_func)
    def wrapped(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs) -> Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    return x.nonzero(as_tuple=True)


def shapes_to_tensor(x: Sequence[int], device: torch.device | None = None) -> Tensor:
    """A list of ints (or 0-d tensors) as one integer tensor."""
    return torch.as_tensor(x, device=device)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    return src.to(dst.device)
