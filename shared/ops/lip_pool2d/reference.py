"""Local importance-based pooling in plain PyTorch: a softmax over each window, written as one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _windows(x: Tensor, kernel_size, stride, padding, value: float) -> Tensor:
    """(N, C, H, W) to (N, C, OH, OW, KH * KW), `value` in the padding."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=value)
    return x.unfold(2, kernel_size[0], stride[0]).unfold(3, kernel_size[1], stride[1]).flatten(4)


def lip_pool2d_reference(x: Tensor, logit: Tensor, kernel_size=3, stride=2, padding=1, *, gate: float | None = None):
    """As `lip_pool2d`. Differentiable twice; holds KH * KW copies of the output."""
    kernel_size, stride, padding = [(v, v) if isinstance(v, int) else v for v in (kernel_size, stride, padding)]
    dtype = x.dtype
    if dtype != torch.float64:
        x, logit = x.float(), logit.float()
    if gate is not None:
        logit = gate * torch.sigmoid(logit)
    weight = _windows(logit, kernel_size, stride, padding, float("-inf")).softmax(dim=-1)
    return (weight * _windows(x, kernel_size, stride, padding, 0.0)).sum(dim=-1).to(dtype)
