"""lip_pool2d as an op: layouts, types, empty input, compilation, repeatability, and the sentences of its errors."""

import math

import pytest
import torch

from shared.ops import library, lip_pool2d, lip_pool2d_reference

from .test_lip_pool2d import LAYOUTS, make_inputs, random_like, run


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


def test_autocast_takes_the_wider_type(device):
    x, logit = make_inputs(device, dtype=torch.float32)
    half = x.detach().to(torch.bfloat16).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y = lip_pool2d(half, logit)
        assert lip_pool2d(x, logit).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, lip_pool2d(half.float(), logit).to(torch.bfloat16), rtol=0, atol=0)
    dx, dl = torch.autograd.grad(y, [half, logit], torch.ones_like(y))
    assert dx.dtype == torch.bfloat16 and dl.dtype == torch.float32


def test_layouts(device):
    x, logit = make_inputs(device, (2, 5, 9, 14), torch.float32)
    last, logit_last = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in (x, logit)]
    weight = random_like(lip_pool2d(x, logit))
    expected = run(lip_pool2d, [x, logit], weight)
    assert all(t.is_contiguous() for t in expected)
    for args in ([last, logit_last], [last, logit]):
        got = run(lip_pool2d, args, weight.to(memory_format=torch.channels_last))
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in got[:2])
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_strided_and_expanded_inputs(device):
    x, logit = make_inputs(device, (2, 5, 9, 14))
    cases = [(x[:, ::2, :, 1::2], logit[:, ::2, :, 1::2]), (x, logit[:, :1].expand_as(x)), (x.mT, logit.mT)]
    for a, b in cases:
        y, expected = lip_pool2d(a, b), lip_pool2d_reference(a, b)
        for weight in (random_like(y), y.new_ones(()).expand_as(y), random_like(y.mT).mT):
            grads = torch.autograd.grad(y, [x, logit], weight, retain_graph=True)
            exact = torch.autograd.grad(expected, [x, logit], weight, retain_graph=True)
            torch.testing.assert_close((y, *grads), (expected, *exact), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 7, 9), (2, 0, 7, 9)])
def test_empty(device, layout, shape):
    args = make_inputs(device, shape, layout=layout)
    y, dx, dl = run(lip_pool2d, args, torch.ones(*shape[:2], 4, 5, device=device))
    assert y.shape == (*shape[:2], 4, 5) and dx.shape == dl.shape == shape
    assert lip_pool2d_reference(*args).shape == y.shape


@pytest.mark.parametrize("needed", [0, 1])
def test_one_gradient(device, layout, needed):
    args = make_inputs(device, layout=layout)
    weight = random_like(lip_pool2d(*args))
    expected = run(lip_pool2d, args, weight)
    args[1 - needed].requires_grad_(False)
    (got,) = torch.autograd.grad(lip_pool2d(*args), args[needed], weight)
    assert torch.equal(got, expected[1 + needed])
    with torch.no_grad():
        assert torch.equal(lip_pool2d(*args), expected[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(device, layout, dtype):
    args = make_inputs(device, (2, 3, 5, 8), dtype, layout=layout)
    window = [3, 3], [2, 2], [1, 1]
    for gate, keep in ((None, True), (12.0, True)):
        torch.library.opcheck(torch.ops.d2ops.lip_pool2d.default, (*args, *window, gate, keep))
    x, logit = [a.detach() for a in args]
    y, lse = torch.ops.d2ops.lip_pool2d(x, logit, *window, None, True)
    unused = torch.ops.d2ops.lip_pool2d(x, logit, *window, None, False)[1]
    assert unused.numel() == 0 and lse.dtype == unused.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    for needs in ([True, True], [False, True], [True, False]):
        args = (torch.ones_like(y), x, logit, y, lse, *window, 12.0, needs)
        torch.library.opcheck(
            torch.ops.d2ops.lip_pool2d_backward.default, args, test_utils=("test_schema", "test_faketensor")
        )


def test_compiles_as_one_graph(device, layout):
    args = make_inputs(device, (2, 3, 9, 14), torch.float32, layout=layout)
    compiled = torch.compile(lambda x, l: lip_pool2d(x, l, gate=12.0).relu(), backend="aot_eager", fullgraph=True)
    weight = random_like(lip_pool2d(*args))
    expected = run(lambda x, l: lip_pool2d(x, l, gate=12.0).relu(), args, weight)
    torch.testing.assert_close(run(compiled, args, weight), expected, rtol=0, atol=0)


def test_repeats_to_the_bit_with_any_number_of_threads(device, layout):
    args = make_inputs(device, (3, 70, 40, 30), torch.float32, layout=layout)
    weight = random_like(lip_pool2d(*args))
    first = run(lip_pool2d, args, weight)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(run(lip_pool2d, args, weight), first))
    finally:
        torch.set_num_threads(before)


def test_result_changed_in_place_is_noticed(device):
    args = make_inputs(device)
    y = lip_pool2d(*args)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_derivative_is_refused(device):
    args = make_inputs(device)
    (dx,) = torch.autograd.grad(lip_pool2d(*args).square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="lip_pool2d_backward has no derivative"):
        dx.sum().backward()


def test_infinite_gradients_pass(device):
    """A scaler of losses finds overflow by the infinities that come through."""
    args = make_inputs(device)
    y = lip_pool2d(*args)
    grads = torch.autograd.grad(y, args, torch.full_like(y, math.inf))
    assert not any(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("name", ["x", "logit"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gate", [None, 12.0])
def test_value_that_is_not_finite_raises(device, layout, name, value, gate):
    if device == "cuda":
        pytest.skip("CUDA looks at values only where SHARED_OPS_CHECK=1 was set before the first call")
    x, logit = make_inputs(device, dtype=torch.float32, layout=layout)
    if name == "logit" and gate and value == math.inf:
        pytest.skip("a gate takes +inf to itself")
    with torch.no_grad():
        (x if name == "x" else logit)[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=f"lip_pool2d: {name} of shape .* holds NaN or infinite values"):
        lip_pool2d(x, logit, gate=gate)


def test_windows_without_any_weight_raise(device):
    if device == "cuda":
        pytest.skip("CUDA looks at values only where SHARED_OPS_CHECK=1 was set before the first call")
    x, logit = make_inputs(device)
    with pytest.raises(ValueError, match="lip_pool2d: logit of shape .* holds NaN or infinite values"):
        lip_pool2d(x, torch.full_like(logit, -math.inf))


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda x, l: ((x[0], l[0]), {}), ValueError, r"x has shape \[5, 7, 9\]; expected \(N, C, H, W\)"),
        (lambda x, l: ((x, l[:, :1]), {}), ValueError, r"logit has shape \[2, 1, 7, 9\] and x \[2, 5, 7, 9\]"),
        (lambda x, l: ((x, l.float()), {}), TypeError, "logit has dtype Float and x has Double; they must have one"),
        (lambda x, l: ((x.int(), l.int()), {}), TypeError, "x has dtype Int; expected float32"),
        (lambda x, l: ((x, l, 0), {}), ValueError, r"kernel_size is \[0, 0\]; expected at least 1"),
        (lambda x, l: ((x, l, 3, 0), {}), ValueError, r"stride is \[0, 0\]; expected at least 1"),
        (lambda x, l: ((x, l, 3, 2, -1), {}), ValueError, r"padding is \[-1, -1\]; expected at least 0"),
        (lambda x, l: ((x, l, (3, 2), 3), {}), ValueError, r"kernel_size is \[3, 2\] and stride \[3, 3\]; the window"),
        (lambda x, l: ((x, l, 3, 2, (1, 2)), {}), ValueError, r"padding is \[1, 2\] and kernel_size \[3, 3\]; padding"),
        (
            lambda x, l: ((x[..., :2, :], l[..., :2, :], 5, 2, 1), {}),
            ValueError,
            r"x has shape \[2, 5, 2, 9\], too small",
        ),
        (lambda x, l: ((x[..., :0], l[..., :0], 2, 2, 1), {}), ValueError, r"x has shape \[2, 5, 7, 0\], too small"),
        (lambda x, l: ((x, l), {"gate": 0.0}), ValueError, "gate is 0; expected a positive, finite number"),
        (lambda x, l: ((x, l), {"gate": math.inf}), ValueError, "gate is inf; expected a positive, finite number"),
        (
            lambda x, l: ((x, l, (3, 3, 3)), {}),
            ValueError,
            r"kernel_size is \(3, 3, 3\); expected an integer or a pair",
        ),
        (lambda x, l: ((x, l, 3, 2.0), {}), ValueError, "stride is 2.0; expected an integer or a pair"),
    ],
)
def test_errors(device, change, error, message):
    args, kwargs = change(*[t.detach() for t in make_inputs(device)])
    with pytest.raises(error, match="^lip_pool2d: " + message):
        lip_pool2d(*args, **kwargs)


def test_devices_must_agree(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    x, logit = make_inputs(device)
    with pytest.raises(ValueError, match="^lip_pool2d: logit is on cpu and x on cuda"):
        lip_pool2d(x, logit.cpu())


def test_backward_without_statistic_is_refused(device):
    x, logit = make_inputs(device)
    y, _ = torch.ops.d2ops.lip_pool2d(x, logit, [3, 3], [2, 2], [1, 1], None, False)
    with pytest.raises(ValueError, match="lse has shape .*keep_lse=False"):
        y.sum().backward()


def test_reference_path(device, monkeypatch):
    args = make_inputs(device, dtype=torch.bfloat16)
    monkeypatch.setenv("SHARED_OPS", "reference")
    assert library.use_reference()
    y = lip_pool2d(*args, gate=12.0)
    assert y.dtype == torch.bfloat16
    monkeypatch.setenv("SHARED_OPS", "native")
    torch.testing.assert_close(lip_pool2d(*args, gate=12.0), y)
