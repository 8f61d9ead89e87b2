"""Sums over the processes of a training ("workers")."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function

from detectron2.utils import comm


class _SumOverWorkers(Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # it may be a view, or another node's
        dist.all_reduce(grad)
        return grad


def sum_over_workers(x: Tensor) -> Tensor:
    """Sum of x over all workers. Where x requires a gradient the sum carries it back to every worker's x, and all
    workers have to go backward through it."""
    return x if comm.get_world_size() == 1 else _SumOverWorkers.apply(x)
