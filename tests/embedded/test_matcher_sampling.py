"""Matching of predictions to ground truth, and the random choice among them."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels


def test_intervals_are_closed_below():
    matcher = Matcher([0.25, 0.75], [0, -1, 1])
    quality = torch.tensor([[0.0, 0.2, 0.25, 0.5, 0.75, 0.1], [0.1, 0.1, 0.0, 0.6, 0.0, 1.0]])
    matches, labels = matcher(quality)
    assert matches.tolist() == [1, 0, 0, 1, 0, 1] and matches.dtype == torch.int64
    assert labels.tolist() == [0, 0, -1, -1, 1, 1] and labels.dtype == torch.int8


def test_low_quality_matches_keep_the_argmax_of_their_column():
    # gt 0 is best (.4) at predictions 1 and 3; prediction 1 itself prefers gt 1.
    quality = torch.tensor([[0.1, 0.4, 0.2, 0.4], [0.2, 0.6, 0.1, 0.0]])
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], True)(quality)
    assert labels.tolist() == [0, 1, 0, 1]
    assert matches.tolist() == [1, 1, 0, 0]
    assert Matcher([0.3, 0.7], [0, -1, 1])(quality)[1].tolist() == [0, -1, 0, -1]


def test_gt_whose_best_is_zero_makes_every_zero_positive():
    quality = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.8]])
    assert Matcher([0.5], [0, 1], True)(quality)[1].tolist() == [1, 1, 1]
    quality = torch.tensor([[0.1, 0.0, 0.8]])
    assert Matcher([0.5], [0, 1], True)(quality)[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_nothing_to_match(shape):
    matches, labels = Matcher([0.3, 0.7], [-1, 0, 1], True)(torch.zeros(shape))
    assert matches.tolist() == [0] * shape[1] and matches.dtype == torch.int64
    assert labels.tolist() == [-1] * shape[1] and labels.dtype == torch.int8


def test_arguments_may_be_config_types_and_stay_unchanged():
    thresholds, labels = OmegaConf.create([0.5]), OmegaConf.create([0, 1])
    for _ in range(2):
        matcher = Matcher(thresholds, labels)
        assert matcher(torch.tensor([[0.4, 0.5]]))[1].tolist() == [0, 1]
    assert list(thresholds) == [0.5] and list(labels) == [0, 1]
    plain = [0.5]
    Matcher(plain, [0, 1])
    assert plain == [0.5]


@pytest.mark.embedded_only
@pytest.mark.parametrize(
    "args, message",
    [
        (([0.5, 0.3], [0, 1, -1]), "must ascend"),
        (([0.0], [0, 1]), "must be positive"),
        (([0.5], [0, 2]), "must be -1, 0 or 1"),
        (([0.5], [0]), "1 thresholds need one label more"),
    ],
)
def test_wrong_arguments(args, message):
    with pytest.raises(AssertionError, match=message):
        Matcher(*args)


def test_negative_quality_is_refused():
    with pytest.raises(AssertionError):
        Matcher([0.5], [0, 1])(torch.tensor([[-0.1, 0.6]]))


LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, -1]


def test_sampling_equals_the_recorded_seed():
    torch.manual_seed(7)
    positive, negative = subsample_labels(torch.tensor(LABELS), 6, 0.5, 0)
    assert positive.tolist() == [3, 2, 0] and negative.tolist() == [5, 8, 6]


def test_missing_positives_are_filled_by_negatives():
    labels = torch.tensor([2, 0, 3, 3, -1, 3, 3])  # class 3 is the background
    positive, negative = subsample_labels(labels, 5, 0.5, 3)
    assert sorted(positive.tolist()) == [0, 1]  # int(5 * .5)
    assert len(set(negative.tolist())) == 3 and set(negative.tolist()) <= {2, 3, 5, 6}
    positive, negative = subsample_labels(labels, 100, 1.0, 3)
    assert sorted(positive.tolist()) == [0, 1] and sorted(negative.tolist()) == [2, 3, 5, 6]


def test_two_permutations_are_drawn_even_if_nothing_is_wanted():
    torch.manual_seed(7)
    subsample_labels(torch.tensor(LABELS), 0, 0.5, 0)
    after = torch.rand(1)
    torch.manual_seed(7)
    torch.randperm(4)
    torch.randperm(5)
    assert torch.equal(after, torch.rand(1))
