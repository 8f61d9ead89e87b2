"""RepPoints' head: its size, where it samples, and which loss trains what."""

import math

import pytest
import torch
import torch.nn.functional as F

from projects.Detectors.reppoints_head import RepPointsHead

SMALL = {"in_channels": 32, "num_classes": 3, "num_convs": 1}


def make_head(seed=0, **kwargs):
    """A small head in float64 with weights large enough for every part to matter."""
    torch.manual_seed(seed)
    head = RepPointsHead(**{**SMALL, **kwargs}).double()
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(std=0.05 if p.dim() > 1 else 0.5)
    return head


def make_maps(channels=32):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, *s, generator=g, dtype=torch.float64) for s in ((5, 7), (3, 4))]


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, 5_340_022),
        # six convolutions lose 256 biases, six norms have 512 values
        ({"norm": "GN"}, 5_340_022 + 6 * 256),
        ({"points_to_box": "minmax"}, 5_340_020),
        # 32 numbers more from 256 channels and a bias, twice; kernels of 25 cells, twice
        ({"num_points": 25}, 5_340_022 + 2 * 32 * 257 + 2 * 16 * 256 * 256),
    ],
)
def test_parameters(kwargs, expected):
    with torch.device("meta"):
        head = RepPointsHead(in_channels=256, num_classes=80, **kwargs)
    assert sum(p.numel() for p in head.parameters()) == expected


def test_start():
    torch.manual_seed(0)
    head = RepPointsHead(in_channels=64, num_classes=80)
    assert torch.equal(head.points_to_box.moment_transfer, torch.zeros(2))
    for name, p in head.named_parameters():
        if p.dim() > 1:
            assert p.std().item() == pytest.approx(0.01, rel=0.1), name
        elif name == "cls_score.1.bias":
            torch.testing.assert_close(p.sigmoid(), torch.full_like(p, 0.01))
            assert p[0].item() == pytest.approx(-math.log(99), abs=1e-5)
        else:
            assert p.abs().max() == 0, name


def test_shapes_and_levels_are_independent():
    head, maps = make_head(num_points=25), make_maps()
    logits, init, refine = head(maps)
    assert [tuple(x.shape) for x in logits] == [(2, 3, 5, 7), (2, 3, 3, 4)]
    assert [tuple(x.shape) for x in init] == [tuple(x.shape) for x in refine] == [(2, 50, 5, 7), (2, 50, 3, 4)]
    for all_levels, alone in zip((logits, init, refine), head(maps[1:])):
        assert torch.equal(all_levels[1], alone[0])


def test_first_points_on_the_grid_make_ordinary_convolutions():
    head, maps = make_head(), make_maps()
    with torch.no_grad():
        head.pts_init[-1].weight.zero_()
        head.pts_init[-1].bias.copy_(head.cls_conv.grid.flatten())
    logits, init, refine = head(maps)
    for x, *found in zip(maps, logits, init, refine):
        cls_map = F.conv2d(head.cls_tower(x), head.cls_conv.weight, padding=1)
        reg_map = F.conv2d(head.reg_tower(x), head.refine_conv.weight, padding=1)
        torch.testing.assert_close(found[0], head.cls_score(cls_map))
        torch.testing.assert_close(found[2], head.pts_refine(reg_map) + found[1])


def test_samples_follow_the_first_points():
    """All first points two rows down: what a location classifies is two rows below it."""
    head, maps = make_head(), make_maps()[:1]
    with torch.no_grad():
        head.pts_init[-1].weight.zero_()
        head.pts_init[-1].bias.copy_(head.cls_conv.grid.flatten())
        plain = head(maps)[0][0]
        head.pts_init[-1].bias.add_(torch.tensor([2.0, 0.0] * 9).double())
        moved = head(maps)[0][0]
    torch.testing.assert_close(moved[:, :, :-2], plain[:, :, 2:])


def grads_of(head, output):
    """{name of a part: whether the sum of squares of this output (0: logits, 1: first, 2: refined) reaches it}"""
    loss = sum(x.square().sum() for x in head(make_maps())[output])
    params = dict(head.named_parameters())
    grads = torch.autograd.grad(loss, params.values(), allow_unused=True)
    reached = {}
    for name, grad in zip(params, grads):
        part = name.split(".")[0]
        reached[part] = reached.get(part, False) or (grad is not None and bool(grad.abs().max() > 0))
    return reached


@pytest.mark.parametrize(
    "output, parts",
    [
        (0, {"cls_tower", "cls_conv", "cls_score", "reg_tower", "pts_init"}),
        (1, {"reg_tower", "pts_init"}),
        (2, {"reg_tower", "pts_init", "refine_conv", "pts_refine"}),
    ],
)
def test_which_output_trains_which_part(output, parts):
    head = make_head()
    assert {part for part, reached in grads_of(head, output).items() if reached} == parts
    # without the path through the samples
    head.init_grad = 0.0
    expected = parts - {"pts_init"} if output != 1 else parts
    expected = expected - {"reg_tower"} if output == 0 else expected
    assert {part for part, reached in grads_of(head, output).items() if reached} == expected


@pytest.mark.parametrize("output", [0, 2])
def test_gradient_of_the_first_points_is_scaled(output):
    """Through the samples alone; the sum of first points and correction is a constant to the first points."""
    grads = []
    for init_grad in (1.0, 0.1):
        head = make_head(init_grad=init_grad)
        maps = head(make_maps())[output]
        grads.append(torch.autograd.grad(sum(x.square().sum() for x in maps), head.pts_init[-1].bias)[0])
    assert grads[0].abs().min() > 0
    torch.testing.assert_close(grads[1], 0.1 * grads[0])


def test_errors():
    with pytest.raises(ValueError, match="norm must be '' or 'GN'.* got 'BN'"):
        RepPointsHead(**SMALL, norm="BN")
    with pytest.raises(ValueError, match="num_points must be .* got 10"):
        RepPointsHead(**SMALL, num_points=10)
    with pytest.raises(ValueError, match="method must be one of .* got 'box'"):
        RepPointsHead(**SMALL, points_to_box="box")
