"""Box encodings and the dense box loss."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear, _dense_box_regression_loss
from detectron2.structures import Boxes


def random_boxes(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=g) * 50
    return torch.cat([xy, xy + 2 + torch.rand(n, 2, generator=g) * 30], dim=1)


def test_hand_computed_deltas():
    t = Box2BoxTransform(weights=(10, 10, 5, 5))
    deltas = t.get_deltas(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[1.0, 1, 12, 10]]))
    # centres (5, 5) -> (6.5, 5.5): 10 * .15, 10 * .05; 5 * log(11 / 10), 5 * log(9 / 10)
    expected = [1.5, 0.5, 5 * math.log(1.1), 5 * math.log(0.9)]
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), OmegaConf.create([1.0, 2.0, 3.0, 4.0])])
def test_apply_inverts_get(weights):
    t = Box2BoxTransform(weights=weights)
    src, target = random_boxes(20), random_boxes(20, seed=1)
    torch.testing.assert_close(t.apply_deltas(t.get_deltas(src, target), src), target)
    assert len(t.weights) == 4
    linear = Box2BoxTransformLinear()
    around = src + torch.tensor([-3.0, -2, 4, 5])
    torch.testing.assert_close(linear.apply_deltas(linear.get_deltas(src, around), src), around)


def test_scale_is_clamped_from_above_only():
    t = Box2BoxTransform(weights=(1, 1, 1, 1))
    assert t.scale_clamp == pytest.approx(4.135166556742356)
    box = torch.tensor([[0.0, 0, 16, 16]])
    huge = t.apply_deltas(torch.tensor([[0.0, 0, 100, 100]]), box)[0]
    assert (huge[2] - huge[0]).item() == pytest.approx(1000, rel=1e-5)  # 16 * 1000 / 16
    tiny = t.apply_deltas(torch.tensor([[0.0, 0, -8, -8]]), box)[0]
    assert (tiny[2] - tiny[0]).item() == pytest.approx(16 * math.exp(-8), rel=1e-3)


def test_apply_computes_in_float32_and_keeps_classes_apart():
    t = Box2BoxTransform(weights=(1, 1, 1, 1))
    boxes, deltas = random_boxes(3), torch.randn(3, 8)
    out = t.apply_deltas(deltas, boxes)
    torch.testing.assert_close(out[:, 4:], t.apply_deltas(deltas[:, 4:], boxes))
    assert t.apply_deltas(deltas.half(), boxes).dtype == torch.float32
    # 0.1 in half is 0.09998: the box itself must not be rounded to half (2049 -> 2048)
    far = torch.tensor([[2048.0, 0, 2050, 2]])
    assert t.apply_deltas(torch.zeros(1, 4).half(), far).tolist() == far.tolist()
    assert t.apply_deltas(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0, 8)
    assert Box2BoxTransformLinear().apply_deltas(deltas[:, :4].half(), boxes).dtype == torch.float16


def test_linear_hand_computed():
    src, target = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[2.0, 4, 8, 30]])
    # centre (5, 10): l 3, t 6, r 3, b 20; sizes (10, 20, 10, 20)
    assert Box2BoxTransformLinear(False).get_deltas(src, target).tolist() == [[3, 6, 3, 20]]
    deltas = Box2BoxTransformLinear().get_deltas(src, target)
    torch.testing.assert_close(deltas, torch.tensor([[0.3, 0.3, 0.3, 1.0]]))
    outside = Box2BoxTransformLinear().apply_deltas(torch.tensor([[-1.0, 0, 0.5, 1]]), src)
    assert outside.tolist() == [[5, 10, 10, 30]]  # the negative distance counts as 0


def test_source_without_width_is_refused():
    with pytest.raises(AssertionError, match="not valid"):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(torch.tensor([[1.0, 1, 1, 5]]), random_boxes(1))


def dense_case():
    anchors = [random_boxes(4), random_boxes(3, seed=1)]
    gt = [random_boxes(7, seed=2), random_boxes(7, seed=3)]
    g = torch.Generator().manual_seed(5)
    pred = [(torch.randn(2, n, 4, generator=g) * 0.3).requires_grad_() for n in (4, 3)]
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 2] = mask[0, 6] = mask[1, 3] = True
    return anchors, pred, gt, mask


def slow_iou_losses(b, g):
    """(giou, diou) losses of one pair, from the definitions."""
    iw = max(0.0, min(b[2], g[2]) - max(b[0], g[0]))
    ih = max(0.0, min(b[3], g[3]) - max(b[1], g[1]))
    union = (b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1]) - iw * ih
    cw, ch = max(b[2], g[2]) - min(b[0], g[0]), max(b[3], g[3]) - min(b[1], g[1])
    iou = iw * ih / union
    rho = ((b[0] + b[2] - g[0] - g[2]) ** 2 + (b[1] + b[3] - g[1] - g[3]) ** 2) / 4
    return 1 - iou + (cw * ch - union) / (cw * ch), 1 - iou + rho / (cw**2 + ch**2)


@pytest.mark.parametrize("beta, wrap", [(0.0, Boxes), (0.1, torch.Tensor)])
def test_dense_smooth_l1_equals_a_loop(beta, wrap):
    t = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    anchors, pred, gt, mask = dense_case()
    wrapped = [wrap(a) for a in anchors]
    loss = _dense_box_regression_loss(wrapped, t, pred, gt, mask, smooth_l1_beta=beta)
    flat, all_pred, expected = torch.cat(anchors), torch.cat(pred, dim=1), 0.0
    for i, r in mask.nonzero().tolist():
        target = t.get_deltas(flat[r : r + 1], gt[i][r : r + 1])[0]
        for d in (all_pred[i, r] - target).abs().tolist():
            expected += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_dense_iou_losses_equal_a_loop(kind):
    t = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    anchors, pred, gt, mask = dense_case()
    loss = _dense_box_regression_loss(anchors, t, pred, gt, mask, kind)
    flat, all_pred, expected = torch.cat(anchors), torch.cat(pred, dim=1), 0.0
    for i, r in mask.nonzero().tolist():
        b = t.apply_deltas(all_pred[i, r][None], flat[r][None])[0].tolist()
        g = gt[i][r].tolist()
        giou, diou = slow_iou_losses(b, g)
        angle = math.atan((g[2] - g[0]) / (g[3] - g[1])) - math.atan((b[2] - b[0]) / (b[3] - b[1]))
        v = 4 / math.pi**2 * angle**2
        iw = max(0.0, min(b[2], g[2]) - max(b[0], g[0]))
        ih = max(0.0, min(b[3], g[3]) - max(b[1], g[1]))
        areas = (b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1])
        iou = iw * ih / (areas - iw * ih)
        expected += {"giou": giou, "diou": diou, "ciou": diou + v * v / (1 - iou + v + 1e-7)}[kind]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_background_rows_never_reach_the_loss():
    anchors, pred, gt, mask = dense_case()
    for i in range(2):
        gt[i][~mask[i]] = 0.0  # log(0)
    t = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    loss = _dense_box_regression_loss(anchors, t, pred, gt, mask)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in pred)
    grads = torch.cat([p.grad for p in pred], dim=1)
    assert (grads[~mask] == 0).all() and (grads[mask] != 0).all()
    everything = _dense_box_regression_loss(anchors, t, pred, [random_boxes(7)] * 2, ...)
    assert everything.isfinite()


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_no_foreground_gives_zero_with_a_graph(kind):
    anchors, pred, gt, mask = dense_case()
    t = Box2BoxTransformLinear()
    loss = _dense_box_regression_loss(anchors, t, pred, gt, mask & False, kind)
    loss.backward()
    assert loss.item() == 0 and all((p.grad == 0).all() for p in pred)


def test_unknown_loss_is_named():
    anchors, pred, gt, mask = dense_case()
    with pytest.raises(ValueError, match="'l2'"):
        _dense_box_regression_loss(anchors, Box2BoxTransformLinear(), pred, gt, mask, "l2")
