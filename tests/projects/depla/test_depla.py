"""The DEPLA module: its equations by hand, what it is invariant to, sizes, start, scale and precision."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill

from projects.DEPLA.depla import DEPLA, DEPLASpec
from tests.projects.depla.nets import SIZE, SMALL, C, D, L, X, Y, by_hand, make_depla, make_inputs

BOTH = pytest.mark.parametrize("back_filling", ["plain", "adaptive"])


@BOTH
@pytest.mark.parametrize("impl", ["auto", "fused", "reference", "sdpa"])
@pytest.mark.parametrize("map_scale", ["peak", "area", "none"])
def test_equals_the_equations(back_filling, impl, map_scale):
    depla = make_depla(back_filling=back_filling, impl=impl, map_scale=map_scale, temperature=0.6)
    x, y = make_inputs()
    torch.testing.assert_close(depla(x, y), by_hand(depla, x, y))
    summed = make_depla(X, X, back_filling=back_filling, impl=impl, map_scale=map_scale, keep_sum=True)
    x, y = make_inputs(y_channels=X)
    torch.testing.assert_close(summed(x, y), by_hand(summed, x, y))


@BOTH
def test_maps_and_heat_maps_sum_to_one(back_filling):
    trace = make_depla(back_filling=back_filling).trace(*make_inputs())
    torch.testing.assert_close(trace.heat.sum(dim=(2, 3)), torch.ones(2, L, dtype=torch.float64))
    assert trace.heat.shape == (2, L, *SIZE) and trace.heat.min() >= 0
    assert trace.pooled.shape == trace.transformed.shape == (2, L, C)
    assert (trace.maps is None) == (back_filling == "adaptive")
    if trace.maps is not None:
        torch.testing.assert_close(trace.maps.sum(dim=(3, 4)), torch.ones(2, L, D, dtype=torch.float64))


@BOTH
def test_constants_before_a_softmax_have_no_effect(back_filling):
    """A channel of ones lets a weight add a constant to each score map, and to phi(X): biases would be dead."""
    depla = make_depla(back_filling=back_filling)
    x, y = make_inputs()
    x[:, -1] = 1
    before = depla.trace(x, y)
    with torch.no_grad():
        depla.soft_rpn.conv.weight[:, -1] += torch.linspace(-3, 5, L * D).view(-1, 1, 1)
        if back_filling == "adaptive":
            depla.bfn.phi.weight[:, -1] += torch.linspace(-2, 2, C).view(-1, 1, 1)
    after = depla.trace(x, y)
    assert not torch.allclose(before.scores, after.scores)
    for name in ("pooled", "heat", "out"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


@BOTH
@pytest.mark.parametrize("map_scale", ["peak", "area", "none"])
def test_back_filling_distributes_each_group(back_filling, map_scale):
    """With an identity as the last convolution: tau(Z) is the sum over cells ("area": the mean; "peak": each group's
    largest value)."""
    depla = make_depla(C, Y, back_filling=back_filling, map_scale=map_scale)
    with torch.no_grad():
        depla.refine.weight.copy_(torch.eye(C).view(C, C, 1, 1))
    trace = depla.trace(*make_inputs(x_channels=C))
    if map_scale == "peak":
        heat = trace.heat / trace.heat.flatten(2).max(dim=2).values[..., None, None]
        assert torch.equal(heat.flatten(2).max(dim=2).values, torch.ones_like(heat[..., 0, 0]))
        torch.testing.assert_close(trace.update, torch.einsum("nlhw,nlc->nchw", heat, trace.transformed))
    else:
        total = trace.update.mean(dim=(2, 3)) if map_scale == "area" else trace.update.sum(dim=(2, 3))
        torch.testing.assert_close(total, trace.transformed.sum(dim=1))


@BOTH
def test_rank_of_the_update(back_filling):
    """out - X is a C1 x P matrix of rank at most min(L, C'), 3 here; X and P allow 7."""
    depla = make_depla(back_filling=back_filling)
    x, y = make_inputs()
    values = torch.linalg.svdvals((depla(x, y) - x).flatten(2))
    assert (values[:, L - 1] > 1e-3 * values[:, 0]).all() and (values[:, L:] < 1e-12 * values[:, :1]).all()


@BOTH
def test_positions_and_groups_may_be_permuted(back_filling):
    depla = make_depla(back_filling=back_filling)
    x, y = make_inputs()
    out = depla(x, y)
    order = torch.randperm(SIZE[0] * SIZE[1], generator=torch.Generator().manual_seed(0))

    def moved(t):
        return t.flatten(2)[:, :, order].view(t.shape)

    torch.testing.assert_close(depla(moved(x), moved(y)), moved(out))
    torch.testing.assert_close(depla(x.flip(3), y.flip(3)), out.flip(3))
    groups = torch.tensor([2, 0, 1])
    maps = (groups[:, None] * D + torch.arange(D)).flatten()
    with torch.no_grad():
        depla.soft_rpn.conv.weight.copy_(depla.soft_rpn.conv.weight[maps].clone())
        if back_filling == "plain":
            depla.bfn.heat.weight.copy_(depla.bfn.heat.weight[groups][:, maps].clone())
    torch.testing.assert_close(depla(x, y), out)


@pytest.mark.parametrize("y_size, out_size", [((3, 4), SIZE), ((3, 5), SIZE), ((9, 10), (9, 10)), ((9, 4), (9, 8))])
def test_the_smaller_is_resized(y_size, out_size):
    """Y is transformed before: the same as after, since a 1x1 convolution and an interpolation commute."""
    depla = make_depla(back_filling="adaptive")
    x, y = make_inputs(y_size=y_size)
    out = depla(x, y)
    assert out.shape == (2, X, *out_size)

    def resized(t):
        return F.interpolate(t, size=out_size, mode="bilinear", align_corners=False)

    torch.testing.assert_close(out, by_hand(depla, resized(x), resized(y)))


def test_odd_sizes_keep_the_sum_by_nearest():
    """13 x 7 cells from 7 x 4; the sum is FPN's own, over the nearest cell."""
    depla = make_depla(X, X, keep_sum=True)
    x, y = make_inputs((13, 7), (7, 4), y_channels=X)
    trace = depla.trace(x, y)
    torch.testing.assert_close(trace.out - trace.update, x + F.interpolate(y, size=(13, 7), mode="nearest"))


@BOTH
@pytest.mark.parametrize("norm", ["", "BN"])
def test_starts_as_the_identity_and_learns(back_filling, norm):
    """At the start out = X, with keep_sum X + Y, to the bit; after a step all parameters have a gradient."""
    for keep_sum in (False, True):
        depla = make_depla(X, X, back_filling=back_filling, zero_init=True, norm=norm, keep_sum=keep_sum)
        x, y = make_inputs(y_channels=X)
        assert torch.equal(depla(x, y), x + y if keep_sum else x)
        optimizer = torch.optim.SGD(depla.parameters(), lr=1e-4)
        for step in range(3):
            optimizer.zero_grad()
            (depla(x, y) * torch.linspace(-1, 1, SIZE[1])).square().sum().backward()
            zero = [name for name, p in depla.named_parameters() if p.grad.abs().max() == 0]
            optimizer.step()
            assert (zero == []) == (step > 0), (step, zero)


def test_scale_of_the_update_at_the_start():
    """std of the update over std of X, filled as in FPN: scaled within two decades from 14 x 14 to 100 x 160 cells (82
    times as many), unscaled falling as 1 / P."""
    ratios = {}
    for map_scale in ("peak", "area", "none"):
        for size in ((14, 14), (100, 160)):
            torch.manual_seed(0)
            spec = DEPLASpec(back_filling="adaptive", map_scale=map_scale, zero_init=False)
            depla = DEPLA(64, 64, spec=spec, fill=c2_xavier_fill)
            x, y = (torch.randn(1, 64, *size).relu() for _ in range(2))
            with torch.no_grad():
                ratios[map_scale, size] = (depla.trace(x, y).update.std() / x.std()).item()
    for scaled in ("peak", "area"):
        assert 0.01 < ratios[scaled, (100, 160)] / ratios[scaled, (14, 14)] < 100
        assert ratios["none", (100, 160)] < 0.01 < ratios[scaled, (100, 160)]
    assert ratios["none", (100, 160)] < ratios["none", (14, 14)] / 20


@BOTH
def test_scale_of_the_update_where_maps_concentrate(back_filling):
    """Scores a hundred times as large: by area a cell gets up to P = 48 times tau(Z), by peak no more than tau(Z)."""
    largest = {}
    for map_scale in ("peak", "area"):
        depla = make_depla(C, Y, back_filling=back_filling, map_scale=map_scale)
        with torch.no_grad():
            depla.refine.weight.copy_(torch.eye(C).view(C, C, 1, 1))
            for weight in depla.bfn.parameters():
                weight *= 100
        trace = depla.trace(*make_inputs(x_channels=C))
        largest[map_scale] = (trace.update.abs().amax(dim=(2, 3)) / trace.transformed.abs().sum(dim=1)).max()
    assert largest["peak"] <= 1 and largest["area"] > 10


def test_area_is_a_change_of_scale():
    """At one size the forms are one model: the literal one with P times the heat and the last weights."""
    scaled, literal = make_depla(map_scale="area"), make_depla(map_scale="none")
    with torch.no_grad():
        literal.bfn.heat.weight *= SIZE[0] * SIZE[1]
        literal.refine.weight *= SIZE[0] * SIZE[1]
    x, y = make_inputs()
    torch.testing.assert_close(literal(x, y), scaled(x, y))


@BOTH
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("map_scale", ["peak", "area", "none"])
def test_autocast(device, back_filling, dtype, tolerance, map_scale):
    """200 x 334 cells: 1 / P is 1.5e-5, subnormal in float16. Softmaxes and sums are in float32: what remains is the
    rounding of convolutions, 2^-11 and 2^-8 a value, and four of them follow each other."""
    torch.manual_seed(0)
    spec = DEPLASpec(**{**SMALL, "back_filling": back_filling, "map_scale": map_scale})
    depla = DEPLA(X, Y, spec=spec, fill=c2_xavier_fill).to(device)
    x, y = (t.float().relu().to(device) for t in make_inputs((200, 334), (200, 334), n=1))
    exact = depla.trace(x, y).update
    with torch.autocast(device, dtype=dtype):
        update = depla.trace(x, y).update
    assert ((update.float() - exact).norm() / exact.norm()).item() < tolerance
    update.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in depla.parameters())


def test_memory_formats_and_empty_batches():
    depla = make_depla()
    x, y = make_inputs()
    out = depla(x, y)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, y)]
    torch.testing.assert_close(depla(*last), out)
    strided = [torch.stack([t, t], dim=4)[..., 0] for t in (x, y)]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(depla(*strided), out)
    assert depla(x[:0], y[:0]).shape == (0, X, *SIZE)
    one = make_inputs((1, 1), (1, 1))
    torch.testing.assert_close(depla(*one), by_hand(depla, *one))


def test_gradcheck_of_the_module():
    depla = make_depla(back_filling="adaptive")
    x, y = (t.requires_grad_() for t in make_inputs((2, 3), (2, 3), n=1))
    parameters = tuple(depla.parameters())
    assert torch.autograd.gradcheck(lambda *_: depla(x, y), (x, y, *parameters), fast_mode=True)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"num_groups": 0}, "num_groups must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"back_filling": "dense"}, "back_filling must be one of plain, adaptive, got 'dense'"),
        ({"impl": "fast"}, "impl must be one of auto, fused, reference, sdpa"),
    ],
)
def test_spec_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        DEPLASpec(**values)


def test_keep_sum_needs_equal_channels():
    with pytest.raises(ValueError, match="4 and 7 channels here: set it to False"):
        make_depla(keep_sum=True)
