"""The intertwiner loss."""

import math

import pytest
import torch

from projects.InterNet.losses import intertwiner_loss

F_ROWS = [[0.5, 0.7], [0.9, 0.5], [0.6, 0.6]]
MEANS = [[0.6, 0.5], [0.8, 0.9]]
ENTRIES = [0, 1, 0]


def loss(kind, reduction="instance_mean", rows=F_ROWS, entries=ENTRIES, means=MEANS):
    rows, means = torch.tensor(rows), torch.tensor(means)
    return float(intertwiner_loss(rows, torch.tensor(entries), means, kind=kind, reduction=reduction))


@pytest.mark.parametrize(
    "kind, reduction, expected",
    [
        # differences: (-.1, .2), (.1, -.4), (0, .1); squares .01 + .04 + .01 + .16 + 0 + .01 = .23 over 3 * 2
        ("l2", "instance_mean", 0.23 / 6),
        ("l2", "instance_sum_dims", 0.23 / 3),
        ("l1", "instance_mean", 0.9 / 6),
        ("l1", "instance_sum_dims", 0.9 / 3),
        # class 0's mean (.55, .65): (-.05, .15); class 1's (.1, -.4); .0025 + .0225 + .01 + .16 = .195 over 2 * 2
        ("l2", "class_mean", 0.195 / 4),
        ("l1", "class_mean", 0.7 / 4),
    ],
)
def test_by_hand(kind, reduction, expected):
    assert loss(kind, reduction) == pytest.approx(expected, abs=1e-7)


def test_kl_by_hand_teacher_first():
    """.25 log(.25 / .5) + .75 log(.75 / .5) = 0.1308; the other way round it would be 0.1438."""
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    arguments = dict(rows=[[0.5, 0.5]], entries=[0], means=[[0.25, 0.75]])
    assert loss("kl", "instance_sum_dims", **arguments) == pytest.approx(expected, abs=1e-7)
    assert loss("kl", **arguments) == pytest.approx(expected / 2, abs=1e-7)


@pytest.mark.parametrize("kind", ["l2", "l1", "kl"])
@pytest.mark.parametrize("reduction", ["instance_mean", "class_mean", "instance_sum_dims"])
def test_zero_for_a_perfect_match_alone(kind, reduction):
    means = torch.softmax(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = means[ENTRIES].clone().requires_grad_()
    entries = torch.tensor(ENTRIES)
    value = intertwiner_loss(rows, entries, means, kind=kind, reduction=reduction)
    assert value.item() == pytest.approx(0, abs=1e-7)
    other = torch.softmax(means.log() * 2, dim=1)[ENTRIES]
    assert float(intertwiner_loss(other, entries, means, kind=kind, reduction=reduction)) > 1e-3


@pytest.mark.parametrize("kind", ["l2", "l1", "kl"])
@pytest.mark.parametrize("reduction", ["instance_mean", "class_mean", "instance_sum_dims"])
def test_no_instances(kind, reduction):
    rows = torch.rand(3, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    value = intertwiner_loss(rows[nothing], nothing, torch.rand(2, 2), kind=kind, reduction=reduction)
    assert value.item() == 0
    value.backward()
    assert rows.grad is not None and not rows.grad.any()


def test_kl_of_a_vanished_value_is_finite():
    """softmax ends in exact zeros for far logits."""
    rows = torch.tensor([[1.0, 0.0]], requires_grad=True)
    value = intertwiner_loss(rows, torch.tensor([0]), torch.tensor([[0.5, 0.5]]), kind="kl")
    value.backward()
    assert value.isfinite() and rows.grad.isfinite().all()


def test_class_mean_averages_before_it_compares():
    """Two instances at equal distances on both sides of the representative."""
    arguments = dict(rows=[[0.5], [0.7]], entries=[0, 0], means=[[0.6]])
    assert loss("l2", "class_mean", **arguments) == pytest.approx(0, abs=1e-12)
    assert loss("l2", **arguments) == pytest.approx(0.01, abs=1e-7)
