"""The distance of two pyramids and the adaption net."""

import pytest
import torch
import torch.nn.functional as F

from projects.LabelEnc.distance import Adaption, pyramid_distance

SHAPES = {"p3": (2, 4, 9, 7), "p4": (2, 4, 5, 4), "p5": (2, 4, 3, 2)}


def pyramid(seed, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng, dtype=dtype) + 0.3 for name, shape in SHAPES.items()}


def normalized(x, norm):
    if norm == "chw":
        return F.layer_norm(x, x.shape[1:])
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


@pytest.mark.parametrize("norm", ["chw", "c"])
def test_reductions(norm):
    """Against all levels' squares side by side."""
    x, y = pyramid(0), pyramid(1)
    squares = [(normalized(x[p], norm) - normalized(y[p], norm)).square() for p in SHAPES]
    everything = torch.cat([s.flatten() for s in squares])
    expected = {
        "mean": everything.mean(),
        "mean_level": torch.stack([s.mean() for s in squares]).mean(),
        "sum": everything.sum() / 2,  # of the squared norm of an image, over two
    }
    for reduction, value in expected.items():
        torch.testing.assert_close(pyramid_distance(x, y, norm=norm, reduction=reduction), value)
    torch.testing.assert_close(pyramid_distance(x, y), expected["mean"] if norm == "chw" else pyramid_distance(x, y))


def test_levels_weigh_by_their_area():
    """Targets equal but on P3 of 800 x 1344: 75.0 % of the elements of P3 to P7, 25.0 % equal."""
    sizes = {"p3": (100, 168), "p4": (50, 84), "p5": (25, 42), "p6": (13, 21), "p7": (7, 11)}
    x = {name: torch.randn(1, 1, *size) for name, size in sizes.items()}
    y = {**x, "p3": -x["p3"]}  # 4 on P3
    assert pyramid_distance(x, y).item() == pytest.approx(4 * 0.7500, abs=2e-3)
    assert pyramid_distance(x, y, reduction="mean_level").item() == pytest.approx(4 / 5, abs=1e-3)


def test_range_and_invariances():
    x = {name: torch.randn(2, 64, 20, 15, dtype=torch.float64) for name in ("p3", "p4")}
    y = {name: torch.randn(2, 64, 20, 15, dtype=torch.float64) for name in ("p3", "p4")}
    identity = Adaption(channels=64, num_convs=0)
    assert pyramid_distance(identity(x), x).item() == pytest.approx(0, abs=1e-6)
    assert pyramid_distance(x, {k: -v for k, v in x.items()}).item() == pytest.approx(4, abs=1e-3)
    assert pyramid_distance(x, y).item() == pytest.approx(2, abs=0.05)
    moved = {k: 3 * v + 7 for k, v in x.items()}
    torch.testing.assert_close(pyramid_distance(moved, y), pyramid_distance(x, y), atol=1e-4, rtol=0)
    zeros = {k: torch.zeros_like(v) for k, v in x.items()}
    assert pyramid_distance(x, zeros).item() == pytest.approx(1, abs=1e-3) and not pyramid_distance(zeros, zeros)


def test_adaption_shared_and_per_level():
    torch.manual_seed(0)
    x = pyramid(2, torch.float32)
    shared = Adaption(channels=4)
    layers = [type(m).__name__ for m in shared.towers]
    assert layers == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]
    out = shared(x)
    assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in x.items()}
    torch.testing.assert_close(out["p4"], shared.towers(x["p4"]))
    assert (out["p3"] < 0).any()  # no last activation
    own = Adaption(channels=4, levels=list(SHAPES))
    assert sum(p.numel() for p in own.parameters()) == 3 * sum(p.numel() for p in shared.parameters()) == 3 * 3 * 148
    torch.testing.assert_close(own(x)["p5"], own.towers["p5"](x["p5"]))
