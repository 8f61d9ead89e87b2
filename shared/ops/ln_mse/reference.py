"""The layer-normalised squared distance in plain PyTorch: two layer norms and a difference."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ln_mse_reference(x: Tensor, y: Tensor, *, dims: str = "chw", eps: float = 1e-5, reduction: str = "mean") -> Tensor:
    """The equation of `ln_mse`, which says what the arguments are."""
    if x.shape != y.shape:
        raise ValueError(
            f"ln_mse: y has shape {tuple(y.shape)} and x {tuple(x.shape)}; expected one shape, (N, C, ...)."
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    if dims == "c":
        x, y = x.movedim(1, -1), y.movedim(1, -1)
    over = x.shape[-1:] if dims == "c" else x.shape[1:]
    squares = (F.layer_norm(x, over, eps=eps) - F.layer_norm(y, over, eps=eps)).square()
    if reduction == "none":
        return squares.flatten(1).sum(dim=1)
    return squares.sum() if reduction == "sum" else squares.sum() / max(squares.numel(), 1)
