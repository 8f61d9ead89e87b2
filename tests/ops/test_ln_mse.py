"""ln_mse against two layer norms and a difference, and what the distance promises."""

import math

import pytest
import torch

from shared.ops.ln_mse import ln_mse, ln_mse_reference

SHAPES = [(2, 3, 5, 7), (3, 8, 37, 41), (2, 70001), (1, 3, 2, 5, 4), (4, 1, 1, 1)]  # rows, tails, more than one task
OPS = torch.ops.d2ops


def make_inputs(device, shape=(2, 3, 5, 7), dtype=torch.float64, mean=0.0):
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=rng, dtype=torch.float64)
    x = 0.5 * y + torch.randn(shape, generator=rng, dtype=torch.float64)
    return [(t + mean).to(device, dtype).requires_grad_() for t in (3 * x, y)]


def with_gradients(function, inputs, **options):
    out = function(*inputs, **options)
    weight = torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape)
    return out, *torch.autograd.grad(out, inputs, weight)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_reference_forward_and_backward(device, shape, reduction):
    inputs = make_inputs(device, shape)
    got = with_gradients(ln_mse, inputs, reduction=reduction)
    expected = with_gradients(ln_mse_reference, inputs, reduction=reduction)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_over_channels_equals_reference(device, reduction):
    for inputs in (
        make_inputs(device),
        [t.detach().to(memory_format=torch.channels_last) for t in make_inputs(device)],
    ):
        inputs = [t.detach().requires_grad_() for t in inputs]
        got = with_gradients(ln_mse, inputs, dims="c", reduction=reduction)
        expected = with_gradients(ln_mse_reference, inputs, dims="c", reduction=reduction)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)
    assert not torch.equal(ln_mse(*inputs, dims="c"), ln_mse(*inputs))


def test_by_hand(device):
    # x = (0, 2): mean 1, variance 1. y = (5, 1): mean 3, variance 4. Covariance ((-1)(2) + (1)(-2)) / 2 = -2.
    # eps 1: s_x = sqrt 2, s_y = sqrt 5. Per element 1/2 + 4/5 + 4 / sqrt 10; two elements.
    x = torch.tensor([[[[0.0, 2.0]]]], dtype=torch.float64, device=device)
    y = torch.tensor([[[[5.0, 1.0]]]], dtype=torch.float64, device=device)
    value = 0.5 + 0.8 + 4 / math.sqrt(10)
    assert ln_mse(x, y, eps=1.0).item() == pytest.approx(value, rel=1e-14)
    assert ln_mse(x, y, eps=1.0, reduction="sum").item() == pytest.approx(2 * value, rel=1e-14)


def test_gradcheck(device):
    torch.autograd.gradcheck(lambda x, y: ln_mse(x, y, reduction="none"), make_inputs(device))
    torch.autograd.gradcheck(lambda x, y: ln_mse(x, y, dims="c"), make_inputs(device, (2, 3, 2, 2)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(device, layout):
    x, y = (t.detach().contiguous(memory_format=layout).requires_grad_() for t in make_inputs(device))
    torch.library.opcheck(OPS.ln_mse.default, (x, y, 1e-5))
    _, moments = OPS.ln_mse(x, y, 1e-5)
    assert not moments.requires_grad
    x, y, grad = x.detach(), y.detach(), torch.rand(2, dtype=torch.float64, device=device)
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(OPS.ln_mse_backward.default, (grad, x, y, moments, 1e-5, *need))


def test_compiles_to_one_graph(device):
    inputs = make_inputs(device)
    compiled = torch.compile(ln_mse, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(with_gradients(compiled, inputs), with_gradients(ln_mse, inputs))


def test_affine_maps_of_either_side(device):
    """0 between a x + b and x for a > 0, 4 for a < 0, and the distance to a third map stays."""
    y, x = (t.detach() for t in make_inputs(device, (3, 8, 37, 41)))
    scale = torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64, device=device)[:, None, None, None]
    moved = scale * x - 7 * scale
    # eps leaves (1 - s/s')^2, about (1e-5)^2 here
    torch.testing.assert_close(ln_mse(moved, x).item(), 0.0, rtol=0, atol=1e-8)
    torch.testing.assert_close(ln_mse(-moved, x).item(), 4.0, rtol=0, atol=4e-4)
    torch.testing.assert_close(ln_mse(moved, y), ln_mse(x, y), rtol=1e-4, atol=0)
    torch.testing.assert_close(ln_mse(y, moved), ln_mse(x, y), rtol=1e-4, atol=0)
    # float32: the squares are sums of products rounded at 6e-8, so equal maps are told apart from 1e-6 on
    assert ln_mse(moved.float(), x.float()).item() < 1e-6


def test_independent_symmetric_and_summed_over_levels(device):
    rng = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 2, 16, n, n + 3, generator=rng, dtype=torch.float64).to(device) for n in (40, 20)]
    for x, y in levels:
        assert ln_mse(x, y).item() == pytest.approx(2.0, abs=0.05)  # 2 (1 - rho), rho of 13,000 samples: 0.009
        torch.testing.assert_close(ln_mse(x, y), ln_mse(y, x))
    count = sum(x.numel() for x, _ in levels)
    joint = sum(ln_mse(x, y, reduction="sum") for x, y in levels) / count
    squares = [(torch.nn.functional.layer_norm(t, t.shape[-3:])) for t in levels]
    expected = torch.cat([(x - y).square().flatten() for x, y in squares]).mean()
    torch.testing.assert_close(joint, expected)


def test_equal_and_constant_maps(device):
    x = make_inputs(device, (2, 3, 50, 51), torch.float32)[0].detach().requires_grad_()
    out, grad_x, grad_y = with_gradients(ln_mse, [x, x.detach().clone().requires_grad_()])
    assert out.item() == 0  # to the bit: the three moments are sums of the same products
    assert max(grad_x.abs().max(), grad_y.abs().max()) <= 1e-6 / x.numel()
    for value in (0.0, 1e6 / 3):
        constant = torch.full_like(x, value).detach().requires_grad_()
        out, grad_constant, grad_x = with_gradients(ln_mse, [constant, x])
        assert out.item() == pytest.approx(1.0, abs=1e-4)  # LN(constant) = 0, and LN(x) has the variance 1
        assert grad_constant.isfinite().all() and grad_x.isfinite().all()
        assert ln_mse(constant, constant + 1).item() == 0


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_large_mean(device, mean):
    """E[x^2] - E[x]^2 in float32 would lose everything at a mean of 10,000 deviations."""
    inputs = make_inputs(device, (2, 8, 37, 41), torch.float32, mean)
    exact = [t.detach().double().requires_grad_() for t in inputs]  # the rounded inputs: rounding them is not our error
    got, expected = with_gradients(ln_mse, inputs), with_gradients(ln_mse_reference, exact)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6 * b.abs().max().item())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_lower_precision(device, dtype, tolerance):
    """float32 inside: the value is as exact as in float32, the gradient is rounded once to its dtype (2^-11, 2^-8)."""
    inputs = make_inputs(device, (2, 8, 37, 41), dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got = with_gradients(ln_mse, inputs, reduction="sum")
    expected = with_gradients(ln_mse_reference, exact, reduction="sum")
    assert got[0].dtype == torch.float32 and got[1].dtype == got[2].dtype == dtype
    torch.testing.assert_close(got[0].double(), expected[0], rtol=2e-6, atol=0)
    for a, b in zip(got[1:], expected[1:]):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item() / 10)


def test_autocast(device):
    x, y = make_inputs(device, dtype=torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = torch.nn.functional.conv2d(x, torch.eye(3, device=device)[:, :, None, None])
        assert half.dtype == torch.bfloat16
        out = ln_mse(half, y)  # one dtype outside autocast, either under it
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, ln_mse(half.float(), y))


def test_layouts(device):
    """Transposed, expanded and channels_last inputs; a gradient has the layout that both inputs share."""
    x, y = (t.detach() for t in make_inputs(device))
    last = [t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, y)]
    expected = with_gradients(ln_mse_reference, [x.requires_grad_(), y.requires_grad_()], reduction="none")
    got = with_gradients(ln_mse, last, reduction="none")
    torch.testing.assert_close(got, expected)
    assert got[1].is_contiguous(memory_format=torch.channels_last)
    mixed = with_gradients(ln_mse, [last[0], y], reduction="none")
    torch.testing.assert_close(mixed, expected)
    turned = [t.detach().transpose(1, 3).contiguous().transpose(1, 3)[:1].expand(3, -1, -1, -1) for t in (x, y)]
    turned = [t.requires_grad_() for t in turned]
    torch.testing.assert_close(
        with_gradients(ln_mse, turned, reduction="none"), with_gradients(ln_mse_reference, turned, reduction="none")
    )


def test_a_side_without_gradient_gets_none(device):
    x, y = make_inputs(device)
    expected = torch.autograd.grad(ln_mse_reference(x, y), (x, y))
    detached = ln_mse(x, y.detach()), ln_mse(x.detach(), y)
    for out, leaf, grad in zip(detached, (x, y), expected):
        torch.testing.assert_close(torch.autograd.grad(out, leaf)[0], grad)
    sums, moments = OPS.ln_mse(x.detach(), y.detach(), 1e-5)
    grads = OPS.ln_mse_backward(torch.ones_like(sums), x.detach(), y.detach(), moments, 1e-5, True, False)
    assert grads[0].shape == x.shape and grads[1].shape == (0,)


def test_empty(device):
    for shape in ((0, 3, 5, 7), (2, 3, 0, 7)):
        inputs = make_inputs(device, shape)
        out, *grads = with_gradients(ln_mse, inputs)
        assert out.item() == 0 and all(g.shape == shape for g in grads)
        assert ln_mse(*inputs, reduction="none").tolist() == [0] * shape[0]
    assert ln_mse(*make_inputs(device, (0, 3, 5, 7)), dims="c").item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_again_and_with_two_threads(device, dtype):
    inputs = make_inputs(device, (2, 16, 67, 71), dtype)
    first = with_gradients(ln_mse, inputs)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            for a, b in zip(first, with_gradients(ln_mse, inputs)):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_second_derivative_is_an_error(device):
    x, y = make_inputs(device)
    (grad,) = torch.autograd.grad(ln_mse(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="ln_mse_backward has no derivative"):
        grad.sum().backward()


def test_reference_on_request(device, monkeypatch):
    inputs = make_inputs(device)
    expected = ln_mse(*inputs)
    monkeypatch.setenv("SHARED_OPS", "reference")
    torch.testing.assert_close(ln_mse(*inputs), expected)


X = torch.zeros(2, 3, 5, 7)
ERRORS = [
    (X[0, 0, 0], X[0, 0, 0], {}, ValueError, r"x has shape \[7\]; expected \(N, C, ...\)"),
    (X, X[:, :2], {}, ValueError, r"y has shape \[2, 2, 5, 7\] and x \[2, 3, 5, 7\]"),
    (X, X[:, :1], {"dims": "c"}, ValueError, r"y has shape \[2, 1, 5, 7\] and x \[2, 3, 5, 7\]"),
    (X, X.double(), {}, TypeError, "y has dtype Double and x has Float"),
    (X.long(), X.long(), {}, TypeError, "x has dtype Long; expected float32"),
    (X, X, {"eps": 0.0}, ValueError, "eps is 0; it must be above 0"),
    (X, X, {"dims": "hw"}, ValueError, "dims is 'hw'; expected 'chw' or 'c'"),
    (X, X, {"reduction": "max"}, ValueError, "reduction is 'max'; expected 'mean', 'sum' or 'none'"),
    (X, torch.full_like(X, math.nan), {}, ValueError, r"y of shape \[2, 3, 5, 7\] holds NaN or infinite"),
    (torch.full_like(X, math.inf), X, {}, ValueError, r"x of shape \[2, 3, 5, 7\] holds NaN or infinite"),
]


@pytest.mark.parametrize("x, y, options, kind, match", ERRORS)
def test_bad_input(x, y, options, kind, match):
    with pytest.raises(kind, match="ln_mse: " + match):
        ln_mse(x, y, **options)


def test_two_devices(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    with pytest.raises(ValueError, match="ln_mse: y is on cpu and x on cuda:0; they must be on one device"):
        ln_mse(X.to(device), X)


def test_bad_input_of_the_backward(device):
    x, y = (t.detach() for t in make_inputs(device))
    sums, moments = OPS.ln_mse(x, y, 1e-5)
    for grad, saved, kind, match in [
        (sums[:1], moments, ValueError, r"grad has shape \[1\]; expected \(2,\)"),
        (sums, moments[:, :4], ValueError, r"moments has shape \[2, 4\]; expected \(2, 5\)"),
        (sums.float(), moments.float(), TypeError, "grad has dtype Float; expected float64"),
    ]:
        with pytest.raises(kind, match="ln_mse: " + match):
            OPS.ln_mse_backward(grad, x, y, saved, 1e-5, True, True)
