"""projects/MuSu/losses.py: losses on soft labels."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss

from projects.MuSu import QualityFocal, TwoSidedFocal
from projects.MuSu.losses import SoftLabels, box_loss, classification_loss, object_scales, soft_labels
from tests.projects.musu.test_assign import SCORES

LABELS = [0.027940, 0.408842, 1, 0.167152, 0, 0, 0.068339, 0]  # of the same object, bag above the mean
BOTH = pytest.mark.parametrize("loss", [TwoSidedFocal(), QualityFocal()], ids=["focal", "qfl"])


def make_labels(rng, num_anchors: int, num_classes: int, count: int) -> SoftLabels:
    places = torch.randperm(num_anchors * num_classes, generator=rng)[:count]
    labels, scales = torch.rand(2, count, generator=rng, dtype=torch.float64)
    return SoftLabels(places // num_classes, places % num_classes, labels, scales + 0.5)


def test_values_of_one_object():
    """E.g. candidate 2, p = .3, label 1: .25 * .7^2 * -ln .3 = .147487; candidate 5, p = .05, label 0: .75 * .05^2 *
    -ln .95 = .000096."""
    z, t = torch.tensor(SCORES, dtype=torch.float64).logit(), torch.tensor(LABELS, dtype=torch.float64)
    focal = TwoSidedFocal().soft(z, t)
    expected = [1.359745, 0.154606, 0.147487, 0.115483, 0.000790, 0.000096, 0.412771, 0.000006]
    assert focal.tolist() == pytest.approx(expected, abs=2e-6)
    assert focal.sum().item() == pytest.approx(2.190984, abs=1e-5)
    assert (focal.sum() / t.sum()).item() == pytest.approx(1.310184, abs=1e-5)
    quality = QualityFocal().soft(z, t).sum()
    assert quality.item() == pytest.approx(2.857037, abs=1e-5)
    assert (quality / t.sum()).item() == pytest.approx(1.708477, abs=1e-5)


@pytest.mark.parametrize("t, focal", zip((0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1), (0.18, 0.23, 0.31, 0.40, 0.50, 0.60, 1)))
def test_minima(t, focal):
    """Which probability a soft label asks for; `sigmoid_focal_loss` would ask for .014 at .1 and .99 at .9."""
    p = torch.linspace(0.0005, 0.9995, 1999, dtype=torch.float64)
    label = torch.full_like(p, t)
    best = [p[loss.soft(p.logit(), label).argmin()].item() for loss in (TwoSidedFocal(), QualityFocal())]
    assert best == pytest.approx([focal, t], abs=6e-3)
    if t == 0.1:
        other = sigmoid_focal_loss(p.logit(), label, alpha=0.25, gamma=2.0)
        assert p[other.argmin()].item() == pytest.approx(0.014, abs=2e-3)


def test_hard_labels_are_the_usual_losses():
    rng = torch.Generator().manual_seed(0)
    z, t = torch.randn(50, generator=rng).mul(4), torch.randint(2, (50,), generator=rng).float()
    torch.testing.assert_close(TwoSidedFocal(0.3, 1.5).soft(z, t), sigmoid_focal_loss(z, t, alpha=0.3, gamma=1.5))
    bce = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    torch.testing.assert_close(QualityFocal(0.0).soft(z, t), bce)
    torch.testing.assert_close(QualityFocal(2.0).soft(z, t), (t - z.sigmoid()) ** 2 * bce)


@BOTH
def test_finite_far_out_and_zero_when_right(loss):
    z = torch.tensor([-200.0, -200.0, 200.0, 200.0], requires_grad=True)
    values = loss.soft(z, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    values.sum().backward()
    assert values[[0, 3]].tolist() == [0, 0] and values[1] > 40 and values[2] > 100
    assert torch.isfinite(z.grad).all()
    torch.testing.assert_close(loss.soft(z, torch.zeros(4)), loss.negative(z))


@BOTH
@pytest.mark.parametrize("count", [0, 40])
def test_sparse_form_equals_dense(loss, count):
    """P13: sum over a (R, K) matrix of labels, and its gradient."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(60, 5, generator=rng, dtype=torch.float64).mul(3).requires_grad_()
    target = make_labels(rng, 60, 5, count)
    labels, scales = torch.zeros(60, 5, dtype=torch.float64), torch.ones(60, 5, dtype=torch.float64)
    labels[target.anchors, target.classes], scales[target.anchors, target.classes] = target.labels, target.scales
    dense = (scales * loss.soft(z, labels)).sum()
    sparse = classification_loss(loss, z, target)
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (sparse, dense)))
    assert torch.autograd.gradcheck(lambda x: classification_loss(loss, x, target), z)


def test_duplicates_keep_the_largest_label():
    """Anchor 3 in the bags of two objects of class 1 and one of class 0."""
    anchors, classes = torch.tensor([3, 3, 3, 7]), torch.tensor([1, 1, 0, 1])
    found = soft_labels(anchors, classes, torch.tensor([0.4, 0.9, 0.2, 0.1]), torch.ones(4), num_classes=2)
    got = {(i, c): round(t, 6) for i, c, t in zip(*(x.tolist() for x in found[:3]))}
    assert got == {(3, 1): 0.9, (3, 0): 0.2, (7, 1): 0.1}


def test_box_loss():
    """GIoU of [0,0,2,2] and [1,0,3,2]: 2/6 - 0 (the hull of 3 x 2 is their union); equal boxes: 1; apart: below 0."""
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 9.0], [0.0, 0.0, 1.0, 1.0]])
    gt = torch.tensor([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 9.0], [3.0, 0.0, 4.0, 1.0]])
    for weights, expected in (([1, 0, 0], 2 / 3), ([0, 1, 0], 0.0), ([0, 0, 1], 1 + 2 / 4), ([0.5, 9, 2], 1 / 3 + 3)):
        assert box_loss(boxes, gt, torch.tensor(weights)).item() == pytest.approx(expected, abs=1e-5)
    empty = boxes.clone().requires_grad_()
    loss = box_loss(empty[:0], gt[:0], torch.zeros(0))
    loss.backward()
    assert loss == 0 and empty.grad.abs().max() == 0


def test_scales_of_objects():
    gts, weights = torch.tensor([0, 0, 2]), torch.tensor([1.0, 0.6, 0.25])
    scaled = weights * object_scales(gts, weights, 3)
    assert scaled.tolist() == pytest.approx([1 / 1.6, 0.6 / 1.6, 1])


@pytest.mark.parametrize(
    "make", [lambda: TwoSidedFocal(alpha=1.0), lambda: TwoSidedFocal(gamma=-1.0), lambda: QualityFocal(-2.0)]
)
def test_errors(make):
    with pytest.raises(ValueError, match="must"):
        make()
