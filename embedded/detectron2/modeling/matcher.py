"""Assigns one ground truth to every prediction by thresholds on a quality such as the IoU.
G: ground truths of an image, P: its predictions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detectron2.structures import Boxes


class Matcher:
    """Label a prediction by the interval `low <= quality < high` of its best ground truth."""

    def __init__(self, thresholds: Sequence, labels: Sequence, allow_low_quality_matches: bool = False):
        """thresholds: ascending, positive. labels: one more than them: 1 foreground, 0 background, -1 ignored.
        allow_low_quality_matches: also label 1 the predictions that are some ground truth's best
        (arXiv:1506.01497, sec. 3.1.2 i), be it with quality 0."""
        self.thresholds, self.labels = [-math.inf, *thresholds, math.inf], list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches
        assert self.thresholds[1] > 0, f"Thresholds must be positive, got {thresholds}."
        assert self.thresholds == sorted(self.thresholds), f"Thresholds must ascend, got {thresholds}."
        assert all(label in (-1, 0, 1) for label in self.labels), f"Labels must be -1, 0 or 1, got {labels}."
        assert len(labels) == len(thresholds) + 1, f"{len(thresholds)} thresholds need one label more, got {labels}."

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Quality (G, P) >= 0 -> index of the best ground truth (P,) int64, label (P,) int8.
        Without ground truth every index is 0 and every label the lowest interval's."""
        assert match_quality_matrix.dim() == 2, "The match quality must be (G, P)."
        if match_quality_matrix.numel() == 0:
            matches = match_quality_matrix.new_zeros(match_quality_matrix.size(1), dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        assert (match_quality_matrix >= 0).all(), "The match quality must not be negative."
        quality, matches = match_quality_matrix.max(dim=0)
        labels = torch.ones_like(matches, dtype=torch.int8)
        for label, low, high in zip(self.labels, self.thresholds[:-1], self.thresholds[1:]):
            labels[(quality >= low) & (quality < high)] = label
        if self.allow_low_quality_matches:
            best_of_gt = match_quality_matrix.max(dim=1, keepdim=True).values
            labels[(match_quality_matrix == best_of_gt).any(dim=0)] = 1
        return matches, labels


def matched_classes(gt_classes: Tensor, matches: Tensor, labels: Tensor, background: int) -> Tensor:
    """Class of each prediction's match (P,): `background` where its label is 0 or G is 0, -1 where its label is -1."""
    if len(gt_classes) == 0:
        return torch.full_like(matches, background)
    return gt_classes[matches].masked_fill(labels == 0, background).masked_fill(labels == -1, -1)


def matched_boxes(gt_boxes: Boxes, matches: Tensor) -> Tensor:
    """Box of each prediction's match (P, 4), zeros if G is 0."""
    return gt_boxes.tensor[matches] if len(gt_boxes) > 0 else gt_boxes.tensor.new_zeros(len(matches), 4)
