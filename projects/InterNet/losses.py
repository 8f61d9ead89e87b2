"""The intertwiner loss ("Feature Intertwiner for Object Detection", ICLR 2019, arXiv:1903.11851, Eq. (3), Table 2b).
N: small samples of this worker, D: width of the critic's output, G: entries of the class buffer."""

import torch
from torch import Tensor

from detectron2.utils import comm
from shared.distributed import sum_over_workers

LOSSES = ("l2", "l1", "kl")
REDUCTIONS = ("instance_mean", "class_mean", "instance_sum_dims")


def divergence(features: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Element-wise D(f, b), (N, D): (f - b)^2, |f - b| or, of distributions over D, b log(b / f): teacher first."""
    if kind == "l2":
        return (features - targets).square()
    if kind == "l1":
        return (features - targets).abs()
    return torch.xlogy(targets, targets) - torch.xlogy(targets, features.clamp(min=1e-30))


def intertwiner_loss(
    features: Tensor, entries: Tensor, means: Tensor, *, kind: str = "l2", reduction: str = "instance_mean"
) -> Tensor:
    """Eq. (3) of features (N, D) with entries (N,) in the buffer, against means (G, D); N may be 0: the loss is 0.

        "instance_mean"      mean over instances and their D elements
        "instance_sum_dims"  mean over instances of the sum over elements; the true KL
        "class_mean"         the mean feature of each class present against its representative, mean over both

    The paper writes a sum. All instances and classes are those of all workers: averaged over workers, as DDP does with
    gradients, the loss is that of one worker with the whole batch. Every worker must call it.
    """
    if reduction == "class_mean":
        return _class_mean(features, entries, means, kind)
    total = sum_over_workers(features.new_tensor(len(features)))
    if reduction == "instance_mean":
        total = total * features.shape[1]
    return divergence(features, means[entries], kind).sum() * comm.get_world_size() / total.clamp(min=1)


def _class_mean(features: Tensor, entries: Tensor, means: Tensor, kind: str) -> Tensor:
    sums = sum_over_workers(torch.zeros_like(means).index_add(0, entries, features))
    counts = sum_over_workers(torch.bincount(entries, minlength=len(means)))
    present = counts > 0
    own = sums[present] / counts[present, None]
    return divergence(own, means[present], kind).sum() / max(own.numel(), 1)
