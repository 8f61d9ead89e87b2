"""Assigns one ground truth to every prediction by thresholds on a quality such as the IoU."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Label a prediction by the interval `low <= quality < high` of its best ground truth."""

    def __init__(self, thresholds: Sequence, labels: Sequence, allow_low_quality_matches: bool = False):
        """
        Args:
            thresholds: ascending, positive.
            labels: one more than thresholds: 1 foreground, 0 background, -1 ignored.
            allow_low_quality_matches: also label 1 the predictions that are some ground truth's
                best (arXiv:1506.01497, sec. 3.1.2 i), be it with quality 0.
        """
        self.thresholds = [-math.inf, *thresholds, math.inf]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches
        assert self.thresholds[1] > 0, f"Thresholds must be positive, got {thresholds}."
        assert self.thresholds == sorted(self.thresholds), f"Thresholds must ascend, got {thresholds}."
        assert all(label in (-1, 0, 1) for label in self.labels), f"Labels must be -1, 0 or 1, got {labels}."
        assert len(self.labels) == len(self.thresholds) - 1, (
            f"{len(self.thresholds) - 2} thresholds need one label more, got {labels}."
        )

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Quality (G, P) >= 0 -> index of the best ground truth (P,) int64, label (P,) int8.

        Without ground truth every index is 0 and every label the lowest interval's.
        """
        assert match_quality_matrix.dim() == 2, "The match quality must be (G, P)."
        if match_quality_matrix.numel() == 0:
            num = match_quality_matrix.size(1)
            matches = match_quality_matrix.new_zeros(num, dtype=torch.int64)
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
