"""lip_pool2d: the softmax-weighted window average, against its float64 reference and the properties of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F

from shared.ops import lip_pool2d, lip_pool2d_reference

WINDOWS = [(3, 2, 1), (2, 2, 0), (5, 3, 2), (3, 1, 1), (7, 4, 3), ((3, 4), (2, 3), (1, 2))]
SIZES = [(1, 1), (1, 17), (2, 5), (5, 4), (7, 8), (8, 13), (16, 9), (17, 3), (15, 17)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def make_inputs(device, shape=(2, 5, 7, 9), dtype=torch.float64, spread=2.0, layout=torch.contiguous_format, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, logit = [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2)]
    return [t.to(device, dtype).to(memory_format=layout).requires_grad_() for t in (x, spread * logit)]


def random_like(y, seed=1):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y)


def run(function, args, weight, *window, **kwargs):
    """(y, gradient of x, gradient of logit)."""
    y = function(*args, *window, **kwargs)
    return y, *torch.autograd.grad(y, args, weight.to(y))


def run_both(args, *window, **kwargs):
    """The op, and its reference in float64 on the same (rounded) inputs, with one upstream gradient."""
    exact = [a.detach().double().requires_grad_() for a in args]
    weight = random_like(lip_pool2d_reference(*exact, *window, **kwargs)).to(args[0].dtype)
    ours = run(lip_pool2d, args, weight, *window, **kwargs)
    return ours, run(lip_pool2d_reference, exact, weight.double(), *window, **kwargs)


def fits(size, window):
    kernel, _, padding = [(v, v) if isinstance(v, int) else v for v in window]
    return all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("spread", [2.0, 40.0])  # 40: logits too far apart for one exponential per input
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equals_reference_forward_and_backward(device, layout, window, spread, dtype, tolerance):
    sizes = [size for size in SIZES if fits(size, window)]
    assert len(sizes) >= 5
    for i, size in enumerate(sizes):
        shape = ((1, 1), (3, 5), (1, 35))[i % 3] + size
        ours, exact = run_both(make_inputs(device, shape, dtype, spread, layout), *window)
        for a, b in zip(ours, exact):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=3 * tolerance)


@pytest.mark.parametrize("shape", [(1, 2, 70, 90), (2, 3, 9, 1100), (40, 7, 8, 6), (3, 130, 19, 6)])
def test_items_of_work_join(device, layout, shape):
    """More than one band of rows, group of planes, and chunk of channels."""
    for spread in (2.0, 40.0):
        ours, exact = run_both(make_inputs(device, shape, torch.float64, spread, layout))
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_one_far_logit(device, layout):
    """A band where one logit is so high that the others' exponentials vanish beside it, and one where it is low."""
    for value in (1e4, 200.0, 60.0, -60.0, -1e4):
        args = make_inputs(device, (1, 3, 20, 24), torch.float32, layout=layout)
        with torch.no_grad():
            args[1][0, 1, 10, 11] = value
        # A weight is exp(l - lse) of float32 numbers: at 1e4 they are 1e-3 apart, elsewhere 1.5e-5 or less.
        for a, b in zip(*run_both(args)):
            torch.testing.assert_close(a.double(), b, rtol=1e-5 if abs(value) < 1e4 else 1e-3, atol=3e-5)


def test_by_hand(device):
    # One window of 2 x 2, logits ln 1, ln 2, ln 3, ln 4 (sum 10), x = 10, 20, 30, 40:
    # y = (10 + 40 + 90 + 160) / 10 = 30, dy/dx = 0.1, 0.2, 0.3, 0.4,
    # dy/dl = p (x - y) = 0.1 * -20, 0.2 * -10, 0.3 * 0, 0.4 * 10 = -2, -2, 0, 4.
    x = torch.tensor([[[[10.0, 20], [30, 40]]]], device=device, dtype=torch.float64, requires_grad=True)
    logit = torch.tensor([[[[1.0, 2], [3, 4]]]], device=device, dtype=torch.float64).log().requires_grad_()
    y, dx, dl = run(lip_pool2d, [x, logit], torch.ones(1, 1, 1, 1, device=device), 2, 2, 0)
    torch.testing.assert_close(y.flatten().tolist(), [30.0])
    torch.testing.assert_close(dx.flatten().tolist(), [0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(dl.flatten().tolist(), [-2.0, -2.0, 0.0, 4.0])
    # Gate ln 4, z = 0: l = 2 ln 2 * sigmoid(0) = ln 2 everywhere, so the mean; dl/dz = ln 4 * 1/4 = 0.5 ln 2.
    z = torch.zeros_like(x).requires_grad_()
    y, _, dz = run(lip_pool2d, [x, z], torch.ones(1, 1, 1, 1, device=device), 2, 2, 0, gate=math.log(4))
    torch.testing.assert_close(y.flatten().tolist(), [25.0])
    expected = [0.25 * (v - 25) * 0.5 * math.log(2) for v in (10, 20, 30, 40)]
    torch.testing.assert_close(dz.flatten().tolist(), expected)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_constant_logits_average_valid_positions(device, layout, window):
    x, _ = make_inputs(device, (2, 3, 11, 14), layout=layout)
    for value in (0.0, -50.0, 700.0):
        y = lip_pool2d(x, torch.full_like(x, value), *window)
        torch.testing.assert_close(y, F.avg_pool2d(x, *window, count_include_pad=False), rtol=1e-13, atol=1e-14)


def test_stays_within_its_window_and_keeps_constants(device, layout):
    x, logit = make_inputs(device, (2, 3, 13, 10), torch.float32, spread=9.0, layout=layout)
    y = lip_pool2d(x, logit)
    assert (y <= F.max_pool2d(x, 3, 2, 1) + 1e-6).all() and (y >= -F.max_pool2d(-x, 3, 2, 1) - 1e-6).all()
    torch.testing.assert_close(lip_pool2d(torch.full_like(x, 2.5), logit), torch.full_like(y, 2.5), rtol=1e-6, atol=0)


def test_tends_to_max_pooling(device):
    # With l = beta x an input d below the maximum adds at most d exp(-beta d) <= 1 / (e beta), and there are 8 of them.
    x, _ = make_inputs(device, (2, 3, 13, 10))
    gap = F.max_pool2d(x, 3, 2, 1) - lip_pool2d(x, 200 * x)
    assert (gap >= -1e-12).all() and (gap <= 8 / (math.e * 200)).all()


def test_one_hot_logits_select(device, layout):
    x, _ = make_inputs(device, (2, 3, 9, 12), torch.float32, layout=layout)
    logit = torch.zeros_like(x)
    logit[..., ::2, ::2] = 50
    y = lip_pool2d(x, logit)  # each window of 3/2/1 has its only even position at its center
    torch.testing.assert_close(y, x[..., ::2, ::2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shifted_logits_change_nothing(device, layout, dtype):
    x, logit = make_inputs(device, (2, 3, 9, 12), dtype, layout=layout)
    logit = logit.detach().round().clamp(-4, 4).requires_grad_()  # whole numbers: exact at 128 in every type
    weight = random_like(lip_pool2d(x, logit))
    expected = run(lip_pool2d, [x, logit], weight)
    for shift in (-128.0, 128.0) + ((-1e4, 1e4) if dtype == torch.float32 else ()):
        moved = (logit.detach() + shift).requires_grad_()
        assert torch.equal(moved - shift, logit)
        got = run(lip_pool2d, [x, moved], weight)
        assert torch.equal(got[0], expected[0])
        # The statistic is in float32: at 1e4 its steps are 2^-10, so the gradients' weights are off by 2^-11, 4.9e-4.
        tolerance = torch.finfo(dtype).eps + abs(shift) * 1e-7
        for a, b in zip(got[1:], expected[1:]):
            torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_logits_stay_finite(device, layout, dtype):
    args = make_inputs(device, (2, 3, 9, 12), dtype, 1e4, layout)
    assert all(t.isfinite().all() for t in run(lip_pool2d, args, torch.ones(2, 3, 5, 6, device=device)))


@pytest.mark.parametrize("shift", [-1e4, -100.0, 100.0, 1e4])
def test_shift_per_map(device, shift):
    x, logit = make_inputs(device)
    levels = shift * torch.rand(2, 5, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    weight = random_like(lip_pool2d(x, logit))
    expected, got = [run(lip_pool2d, [x, l], weight) for l in (logit, (logit.detach() + levels).requires_grad_())]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)  # 1e4 in float64 is within 1e-12


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_sums_of_gradients(device, window):
    x, logit = make_inputs(device, (2, 3, 15, 11))
    weight = random_like(lip_pool2d(x, logit, *window))
    _, dx, dl = run(lip_pool2d, [x, logit], weight, *window)
    torch.testing.assert_close(dl.sum((2, 3)), torch.zeros(2, 3, device=device, dtype=dl.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(dx.sum((2, 3)), weight.sum((2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [2.0, 40.0])
def test_inputs_outside_every_window_get_zero(device, layout, spread):
    args = make_inputs(device, (2, 3, 7, 9), torch.float32, spread, layout)  # 2/2/0: the last row and column are left
    y = lip_pool2d(*args, 2, 2, 0)
    for grad in torch.autograd.grad(y, args, random_like(y)):
        assert (grad[..., 6, :] == 0).all() and (grad[..., 8] == 0).all()
        assert (grad[..., :6, :8] != 0).all() or spread == 40.0  # where most weights vanish


def test_minus_infinity_masks(device, layout):
    args = make_inputs(device, (2, 3, 8, 11), layout=layout)
    with torch.no_grad():
        args[1][..., 1:4, ::2] = -math.inf
        args[1][..., 4:, :] -= 900  # what is left of windows of masked rows lies far below
    ours, exact = run_both(args)
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
    assert (ours[1][..., 1:4, ::2] == 0).all() and (ours[2][..., 1:4, ::2] == 0).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gate_is_formed_inside(device, layout, dtype, tolerance):
    # float32: logits of 12 are 1e-6 apart, and the sigmoid's error counts 12 times.
    x, z = make_inputs(device, (2, 5, 9, 14), dtype, spread=6.0, layout=layout)
    weight = random_like(lip_pool2d(x, z))
    inside = run(lip_pool2d, [x, z], weight, gate=12.0)
    outside = run(lambda x, z: lip_pool2d(x, 12 * torch.sigmoid(z)), [x, z], weight)
    torch.testing.assert_close(inside, outside, rtol=tolerance, atol=tolerance)
    for a, b in zip(*run_both([x, z], 5, 3, 2, gate=500.0)):
        torch.testing.assert_close(a.double(), b, rtol=40 * tolerance, atol=40 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, layout, dtype):
    """Within 1 unit in the last place: sums are in float32, so only the result is rounded."""
    eps = torch.finfo(dtype).eps
    for spread in (2.0, 40.0):
        args = make_inputs(device, (2, 5, 13, 35), dtype, spread, layout)
        (y, dx, dl), exact = run_both(args)
        assert y.dtype == dx.dtype == dl.dtype == dtype
        torch.testing.assert_close(y.double(), exact[0], rtol=eps, atol=1e-7)
        torch.testing.assert_close(dx.double(), exact[1], rtol=eps, atol=1e-6)
        # x - y takes the rounded y, off by half a unit of up to 4, times up to four gradients of about 2
        torch.testing.assert_close(dl.double(), exact[2], rtol=eps, atol=8 * eps)


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (5, 3, 2)], ids=str)
def test_gradcheck(device, window):
    x, logit = make_inputs(device, (1, 2, 5, 7))
    for gate in (None, 12.0):
        torch.autograd.gradcheck(lambda a, b, gate=gate: lip_pool2d(a, b, *window, gate=gate), (x, logit))
    torch.autograd.gradcheck(lambda a: lip_pool2d(a, logit.detach(), *window), (x,))
    torch.autograd.gradcheck(lambda b: lip_pool2d(x.detach(), b, *window), (logit,))


def test_statistic_is_log_sum_exp(device, layout):
    x, logit = make_inputs(device, layout=layout)
    _, lse = torch.ops.d2ops.lip_pool2d(x, logit, [2, 2], [2, 2], [0, 0], None, True)
    expected = F.avg_pool2d(logit.exp(), 2, 2).mul(4).log()
    torch.testing.assert_close(lse, expected, rtol=1e-13, atol=1e-13)
