"""The grid head: its size, the fusion of points, heatmaps and losses."""

import logging

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis

from detectron2.layers import ShapeSpec
from projects.Detectors.grid_head import GridHead, PointFusion

from .rcnn_parts import size

# points of the 3 x 3 grid, x-major: 0 1 2 is its left column
NEIGHBOURS = {
    0: (1, 3),
    1: (0, 2, 4),
    2: (1, 5),
    3: (0, 4, 6),
    4: (1, 3, 5, 7),
    5: (2, 4, 8),
    6: (3, 7),
    7: (4, 6, 8),
    8: (5, 7),
}


def make_head(side=14, **changes):
    shape = ShapeSpec(channels=8, height=side, width=side)
    return GridHead(input_shape=shape, **{"num_convs": 2, "point_channels": 4, "norm_groups": 4, **changes})


def randomise(module):
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return module


def fusion_loop(fusion, x, messages):
    """Edge by edge, each with its own two convolutions."""
    c, points = fusion.channels, list(x.split(fusion.channels, dim=1))
    sent = messages.split(c, dim=1)
    seen = 0
    for k, (j, i) in enumerate(zip(fusion.sources.tolist(), fusion.targets.tolist())):
        assert j in NEIGHBOURS[i]
        rows = slice(k * c, (k + 1) * c)
        y = F.conv2d(sent[j], fusion.depthwise.weight[rows], fusion.depthwise.bias[rows], padding=2, groups=c)
        points[i] = points[i] + F.conv2d(y, fusion.pointwise.weight[rows], fusion.pointwise.bias[rows])
        seen += 1
    assert seen == sum(map(len, NEIGHBOURS.values())) == 24
    return torch.cat(points, dim=1)


def test_parameters():
    """576 = 9 x 64 channels: first conv 256 -> 576, seven 576 -> 576, each with bias and norm; 2 x 24 transitions of
    64 x 25 + 64 and 64 x 64 + 64; deconvolutions of 9 groups, 64 -> 64 and 64 -> 1, 4 x 4, a norm between."""
    with torch.device("meta"):
        head = GridHead(input_shape=ShapeSpec(channels=256, height=14, width=14))
    convs = (9 * 256 * 576 + 3 * 576) + 7 * (9 * 576 * 576 + 3 * 576)
    transitions = 2 * 24 * (64 * 25 + 64 + 64 * 64 + 64)
    deconvs = 16 * 576 * 64 + 576 + 2 * 576 + 16 * 576 + 9
    assert size(head) == convs + transitions + deconvs == 23_123_145


def test_grouped_fusion_equals_a_loop_over_edges():
    fusion = randomise(PointFusion(3, 4).double())
    x, messages = torch.randn(2, 2, 36, 5, 7, dtype=torch.float64, requires_grad=True).unbind(0)
    out, wanted = fusion(x, messages), fusion_loop(fusion, x, messages)
    torch.testing.assert_close(out, wanted)
    inputs = [x, messages, *fusion.parameters()]
    weight = torch.randn_like(out)
    grads = [torch.autograd.grad(y, inputs, weight, retain_graph=True) for y in (out, wanted)]
    torch.testing.assert_close(*grads)


def test_two_orders_reach_two_steps():
    """Eq. 5: the second order sends what the first received, and adds to the unfused features."""
    head = randomise(make_head().double()).eval()
    x = torch.randn(1, 8, 14, 14, dtype=torch.float64)
    features = head.convs(x).detach().requires_grad_()
    fused = head.fusion2(features, head.fusion1(features, features))
    wanted = fusion_loop(head.fusion2, features, fusion_loop(head.fusion1, features, features))
    torch.testing.assert_close(fused, wanted)
    reached = torch.autograd.grad(fused[:, :4].sum(), features)[0].unflatten(1, (9, 4)).abs().sum(dim=(0, 2, 3, 4)) > 0
    assert reached.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 6]
    torch.testing.assert_close(head(x)[0], head._heatmaps(wanted))


def test_second_heatmap_is_of_the_unfused_features_and_of_training():
    head = randomise(make_head())
    x = torch.randn(3, 8, 14, 14)
    fused, unfused = head(x)
    assert fused.shape == unfused.shape == (3, 9, 28, 28)
    torch.testing.assert_close(unfused, head._heatmaps(head.convs(x)))
    assert (fused - unfused).abs().max() > 1e-3
    head.eval()
    assert head(x)[1] is None
    torch.testing.assert_close(head(x)[0], fused)


def test_heatmap_of_a_point_comes_from_its_channels():
    head = randomise(make_head())
    x = torch.randn(1, 36, 7, 7, requires_grad=True)
    used = torch.autograd.grad(head._heatmaps(x)[:, 5].sum(), x)[0].abs().sum(dim=(0, 2, 3)) > 0
    assert used.nonzero()[:, 0].tolist() == [20, 21, 22, 23]


def test_start():
    """Every cell at about a probability of 0.01; a transition starts as the convolution of 64 channels that it is."""
    torch.manual_seed(0)
    head = make_head()
    assert (head(torch.randn(2, 8, 14, 14))[0].sigmoid() - 0.01).abs().max() < 1e-3
    fusion = PointFusion(3, 64)
    assert abs(fusion.depthwise.weight.std().item() / (2 / (64 * 25)) ** 0.5 - 1) < 0.02
    assert abs(fusion.pointwise.weight.std().item() / (2 / 64) ** 0.5 - 1) < 0.02


def test_loss_by_hand():
    """p = 0.01 in all 9 x 28 x 28 = 7056 cells, 9 x 5 = 45 of them positive:
    15 (45 ln 100 + 7011 ln(100 / 99)) / 7056 = 15 (207.2327 + 70.4629) / 7056 = 0.590340."""
    head = make_head()
    torch.nn.init.zeros_(head.deconv2.weight)
    roi = torch.tensor([[28.0, 28.0, 84.0, 84.0]])
    losses = head.losses(torch.randn(1, 8, 14, 14), roi, torch.tensor([[30.0, 40.0, 80.0, 90.0]]))
    assert set(losses) == {"loss_grid", "loss_grid_unfused"}
    for loss in losses.values():
        torch.testing.assert_close(loss, torch.tensor(0.590340), atol=1e-5, rtol=0)


def test_loss_takes_each_heatmap_for_its_own_and_scales():
    head, double = randomise(make_head()), randomise(make_head(loss_weight=30.0))
    x, roi = torch.randn(2, 8, 14, 14), torch.tensor([[10.0, 10.0, 40.0, 50.0]] * 2)
    gt = torch.tensor([[12.0, 8.0, 44.0, 46.0]] * 2)
    one, two = head.losses(x, roi, gt), double.losses(x, roi, gt)
    for name in one:
        torch.testing.assert_close(2 * one[name], two[name])
    grads = torch.autograd.grad(one["loss_grid_unfused"], list(head.fusion1.parameters()), allow_unused=True)
    assert all(g is None for g in grads) and one["loss_grid"] != one["loss_grid_unfused"]


def test_no_rois_give_zero_losses_that_reach_every_parameter():
    head, x = make_head(), torch.zeros(0, 8, 14, 14, requires_grad=True)
    losses = head.losses(x, torch.zeros(0, 4), torch.zeros(0, 4))
    sum(losses.values()).backward()
    assert len(losses) == 2 and all(loss == 0 for loss in losses.values()) and x.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_other_numbers_of_points():
    head = make_head(side=6, num_points=4)
    assert head.fusion1.sources.tolist() == [1, 2, 0, 3, 0, 3, 1, 2]
    fused, _ = head(torch.randn(2, 8, 6, 6))
    assert fused.shape == (2, 4, 12, 12)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_points": 8}, "NUM_POINTS"),
        ({"num_points": 1}, "NUM_POINTS"),
        ({"norm_groups": 7}, "NORM_GROUPS"),
        ({"num_convs": 0}, "NUM_CONVS"),
        ({"side": 7}, "POOLER_RESOLUTION"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)


def test_multiply_adds():
    """First conv 256 -> 576 on 7 x 7, seven 576 -> 576, 48 transitions, deconvolutions from 7 x 7 and 14 x 14."""
    head = GridHead(input_shape=ShapeSpec(channels=256, height=14, width=14)).eval()
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # operators that count nothing
    with torch.no_grad():
        count = FlopCountAnalysis(head, torch.zeros(1, 256, 14, 14)).by_operator()["conv"]
    convs = 49 * 9 * 576 * (256 + 7 * 576)
    assert count == convs + 48 * 49 * 64 * (25 + 64) + 16 * 576 * (49 * 64 + 196) == 1_133_325_312


def test_mixed_precision():
    head, x = randomise(make_head()), torch.randn(2, 8, 14, 14)
    boxes = torch.tensor([[10.0, 10.0, 40.0, 50.0]] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(x, boxes, boxes)
    wanted = head.losses(x, boxes, boxes)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted[name], rtol=0.02, atol=0)  # bfloat16 has 8 bits
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
