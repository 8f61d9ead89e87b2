"""Random choice of the predictions that enter a loss."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of at most `int(num_samples * positive_fraction)` positives, and of negatives that
    fill up to `num_samples`. Labels (R,): -1 is ignored, `bg_label` negative, others positive."""
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_pos = min(positive.numel(), int(num_samples * positive_fraction))
    num_neg = min(negative.numel(), num_samples - num_pos)
    # Both permutations are always drawn: the state of the generator must not depend on the counts.
    perm_pos = torch.randperm(positive.numel(), device=positive.device)[:num_pos]
    perm_neg = torch.randperm(negative.numel(), device=negative.device)[:num_neg]
    return positive[perm_pos], negative[perm_neg]
