"""Losses on soft labels and weighted samples. z: logits, p = sigmoid(z), t: soft labels in [0, 1].

The labels are zero but for a few (anchor, class) pairs, so sums are taken as if all were zero, and corrected at the
pairs: no soft label of the size of the logits exists.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fvcore.nn import giou_loss
from torch import Tensor


@dataclass(frozen=True)
class TwoSidedFocal:
    """t FL+ + (1 - t) FL-: the two terms of the focal loss (arXiv:1708.02002, Eq. (5)), weighted. Ours; the paper says
    only that targets are weights on the base loss.

    FL+ = -alpha (1 - p)^gamma log p,  FL- = -(1 - alpha) p^gamma log(1 - p). It keeps the order of the labels but
    lifts small ones: its minimum for t = 0.5 is at p = 0.40, for t = 0.1 at 0.23. (`sigmoid_focal_loss` fed with soft
    labels is another function, whose minimum for t = 0.1 is at 0.014.)
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __post_init__(self):
        if not (0 < self.alpha < 1 and self.gamma >= 0):
            raise ValueError(f"TwoSidedFocal: alpha must lie in (0, 1) and gamma be >= 0, got {self}.")

    def negative(self, z: Tensor) -> Tensor:
        """The loss for t = 0, element by element."""
        return (1 - self.alpha) * z.sigmoid() ** self.gamma * F.softplus(z)

    def soft(self, z: Tensor, t: Tensor) -> Tensor:
        """The loss, element by element."""
        positive = self.alpha * (-z).sigmoid() ** self.gamma * F.softplus(-z)
        return t * positive + (1 - t) * self.negative(z)


@dataclass(frozen=True)
class QualityFocal:
    """|t - p|^beta BCE(p, t) (arXiv:2006.04388, Eq. (4)), whose minimum is at p = t."""

    beta: float = 2.0

    def __post_init__(self):
        if self.beta < 0:
            raise ValueError(f"QualityFocal: beta must be >= 0, got {self.beta}.")

    def negative(self, z: Tensor) -> Tensor:
        """The loss for t = 0, element by element."""
        return z.sigmoid() ** self.beta * F.softplus(z)

    def soft(self, z: Tensor, t: Tensor) -> Tensor:
        """The loss, element by element."""
        return (t - z.sigmoid()).abs() ** self.beta * (F.softplus(z) - t * z)


class SoftLabels(NamedTuple):
    """Labels other than zero; all (P,). A pair of an anchor and a class occurs once."""

    anchors: Tensor
    classes: Tensor
    labels: Tensor
    scales: Tensor  # factor of the loss of the pair


def soft_labels(anchors: Tensor, classes: Tensor, labels: Tensor, scales: Tensor, num_classes: int) -> SoftLabels:
    """Of pairs that occur several times, as an anchor in the bags of two objects of a class, the one with the largest
    label stays, with its scale; of equal labels the largest scale."""
    index, inverse = torch.unique(anchors * num_classes + classes, return_inverse=True)
    largest = labels.new_zeros(len(index)).scatter_reduce(0, inverse, labels, "amax")
    of_largest = torch.where(labels == largest[inverse], scales, 0)
    scale = scales.new_zeros(len(index)).scatter_reduce(0, inverse, of_largest, "amax")
    return SoftLabels(index // num_classes, index % num_classes, largest, scale)


def classification_loss(loss: TwoSidedFocal | QualityFocal, logits: Tensor, target: SoftLabels) -> Tensor:
    """Sum of `loss` over all anchors and classes. logits: (R, K), float32."""
    z = logits[target.anchors, target.classes]
    return loss.negative(logits).sum() + (target.scales * loss.soft(z, target.labels) - loss.negative(z)).sum()


def box_loss(boxes: Tensor, gt_boxes: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * (1 - GIoU) (arXiv:1902.09630). Boxes (P, 4), xyxy. Without samples 0, with a gradient of 0."""
    return (weights * giou_loss(boxes, gt_boxes, reduction="none")).sum()


def object_scales(gts: Tensor, weights: Tensor, num_gts: int) -> Tensor:
    """(P,) factors that make the weights of each object sum to 1."""
    return 1 / weights.new_zeros(num_gts).index_add(0, gts, weights)[gts]
