"""Soft RoI pooling on every implementation: the definition, limits of the temperature, masks, gradients."""

import pytest
import torch

from projects.DEPLA.pooling import pool, spatial_softmax

IMPLS = ["fused", "reference", "sdpa"]
N, L, C, D, H, W = 2, 3, 5, 2, 4, 7


def inputs(n=N, height=H, width=W, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(n, L, D, height, width, generator=rng, dtype=dtype)
    return scores, torch.randn(n, C, D, height, width, generator=rng, dtype=dtype)


def a_mask():
    mask = torch.ones(N, H, W, dtype=torch.bool)
    mask[0, 3:], mask[1, :, 5:] = False, False
    return mask


def by_loops(scores, values, temperature, mask=None):
    """Four loops; the softmax over the cells that take part."""
    pooled = torch.zeros(N, L, C, dtype=scores.dtype)
    for n in range(N):
        inside = torch.ones(H, W, dtype=torch.bool) if mask is None else mask[n]
        for i in range(L):
            for c in range(C):
                for d in range(D):
                    weights = (scores[n, i, d][inside] / temperature).exp()
                    pooled[n, i, c] += (weights / weights.sum() * values[n, c, d][inside]).sum()
    return pooled


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_definition(impl, masked):
    scores, values = inputs()
    mask = a_mask() if masked else None
    for temperature in (0.3, 1.0):
        pooled, maps = pool(scores, values, temperature, mask, True, impl)
        torch.testing.assert_close(pooled, by_loops(scores, values, temperature, mask))
        torch.testing.assert_close(maps.sum(dim=(3, 4)), torch.ones(N, L, D, dtype=maps.dtype))
        assert maps.min() >= 0 and maps.shape == scores.shape
        torch.testing.assert_close(pool(scores, values, temperature, mask, False, impl), pooled)


@pytest.mark.parametrize("impl", IMPLS)
def test_constants(impl):
    """Values 1 give D; equal scores, the D-sum of the means; a constant added to a map changes nothing."""
    scores, values = inputs()
    ones = pool(scores, torch.ones_like(values), 0.7, None, False, impl)
    torch.testing.assert_close(ones, torch.full((N, L, C), float(D), dtype=ones.dtype))
    means = pool(torch.full_like(scores, 3.0), values, 0.7, None, False, impl)
    torch.testing.assert_close(means, values.mean(dim=(3, 4)).sum(2)[:, None].expand(N, L, C))
    shifted = scores + 10 * torch.arange(L * D, dtype=scores.dtype).view(1, L, D, 1, 1)
    torch.testing.assert_close(
        pool(shifted, values, 0.7, None, False, impl), pool(scores, values, 0.7, None, False, impl)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_temperature(impl):
    """T -> 0 selects the values at each map's highest score, nearer with each step; a large T averages."""
    _, values = inputs()
    order = torch.stack([torch.randperm(H * W, generator=torch.Generator().manual_seed(i)) for i in range(N * L * D)])
    scores = order.view(N, L, D, H, W).double()  # neighbours in rank differ by 1
    best = scores.flatten(3).argmax(-1)
    chosen = (
        values.flatten(3)[:, None]
        .expand(-1, L, -1, -1, -1)
        .gather(4, best[:, :, None, :, None].expand(-1, -1, C, -1, 1))
    )
    selected = chosen.squeeze(4).sum(3)
    distances = [(pool(scores, values, t, None, False, impl) - selected).abs().max().item() for t in (4, 1, 0.3, 0.02)]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-9 < distances[0]
    average = values.mean(dim=(3, 4)).sum(2)[:, None].expand(N, L, C)
    torch.testing.assert_close(pool(scores, values, 1e9, None, False, impl), average)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(impl, masked):
    scores, values = (t.requires_grad_() for t in inputs())
    mask = a_mask() if masked else None
    weight = torch.linspace(-1, 1, scores.numel(), dtype=torch.float64).view(scores.shape)

    def both(s, v):
        pooled, maps = pool(s, v, 0.6, mask, True, impl)
        return pooled, (maps * weight).sum()

    assert torch.autograd.gradcheck(both, (scores, values), fast_mode=True)


@pytest.mark.parametrize("impl", ["fused", "sdpa"])
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (37, 29)])
def test_equals_the_reference_in_float32(impl, size, device):
    """Forward to 1e-6, gradients to 1e-5; also a single cell, sizes that fill no tile, strided inputs."""
    scores, values = (t.float().to(device) for t in inputs(2, *size))
    scores, values = (
        scores.flip(0).transpose(3, 4),
        values.transpose(3, 4).contiguous(memory_format=torch.channels_last_3d),
    )
    found = []
    for path in (impl, impl, "reference"):
        s, v = scores.clone().requires_grad_(), values.clone().requires_grad_()
        pooled = pool(s, v, 0.5, None, False, path)
        pooled.square().sum().backward()
        found.append((pooled.detach(), s.grad, v.grad))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1]))  # deterministic
    torch.testing.assert_close(found[0][0], found[2][0], rtol=1e-5, atol=1e-6)
    for ours, reference in zip(found[0][1:], found[2][1:]):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_pool(impl):
    scores, values = inputs(0)
    assert pool(scores, values, 1.0, None, False, impl).shape == (0, L, C)
    scores, values = inputs()
    mask = a_mask()
    mask[0] = False  # an image without a valid cell
    pooled, maps = pool(scores, values, 1.0, mask, True, impl)
    assert pooled[0].abs().max() == 0 and maps[0].abs().max() == 0
    torch.testing.assert_close(pooled[1], by_loops(scores, values, 1.0, a_mask())[1])


def test_spatial_softmax_by_hand():
    """log 1, log 3 and a masked cell: 1/4, 3/4, 0; at T = 1/2 they are squared: 1/10, 9/10."""
    logits = torch.tensor([1.0, 3.0, 100.0]).log().view(1, 1, 3)
    mask = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(spatial_softmax(logits[:, None], 1.0, mask).flatten(), torch.tensor([0.25, 0.75, 0.0]))
    torch.testing.assert_close(spatial_softmax(logits[:, None], 0.5, mask).flatten(), torch.tensor([0.1, 0.9, 0.0]))
    assert spatial_softmax(logits.half()).dtype == torch.float32
