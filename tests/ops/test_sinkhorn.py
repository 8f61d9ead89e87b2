"""sinkhorn and sinkhorn_divergence: equality with the reference, the properties of transport plans, errors."""

import math

import pytest
import torch

from shared.ops import cosine_cost, sinkhorn, sinkhorn_divergence, sinkhorn_divergence_reference, sinkhorn_reference

GRADS = ["unroll", "envelope"]


def features(device, *shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def make_cost(device, n=(2,), rows=13, cols=19, k=40, dtype=torch.float64):
    return cosine_cost(features(device, *n, rows, k), features(device, *n, cols, k, seed=1)).to(dtype)


def make_pairs(device, dtype=torch.float64, rows=9, cols=7, images=2):
    """Two level pairs with different numbers of positions."""
    x = [features(device, images, rows, k, seed=k, dtype=dtype).requires_grad_() for k in (24, 10)]
    y = [features(device, images, cols, k, seed=k + 1, dtype=dtype).requires_grad_() for k in (24, 10)]
    return x, y


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("log_domain", [False, True])
@pytest.mark.parametrize(
    "n, rows, cols, iters", [((2,), 13, 19, 10), ((), 40, 36, 3), ((2, 3), 1, 5, 2), ((3,), 70, 16, 1), ((1,), 1, 1, 2)]
)
def test_equals_reference_forward_and_backward(device, n, rows, cols, iters, log_domain, grad):
    cost = make_cost(device, n, rows, cols).requires_grad_()
    options = dict(log_domain=log_domain, grad=grad, return_plan=True)
    (loss, plan), (ref, ref_plan) = (f(cost, 0.1, iters, **options) for f in (sinkhorn, sinkhorn_reference))
    torch.testing.assert_close(loss, ref)
    torch.testing.assert_close(plan, ref_plan)
    assert plan.shape == cost.shape and not plan.requires_grad
    weight = features(device, *n, seed=2)
    torch.testing.assert_close(*(torch.autograd.grad(v, cost, weight)[0] for v in (loss, ref)))


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("log_domain", [False, True])
@pytest.mark.parametrize("debiased, cols", [(False, 7), (True, 7), (True, 9)])
def test_divergence_equals_reference(device, debiased, cols, log_domain, grad):
    x, y = make_pairs(device, cols=cols)
    options = dict(debiased=debiased, log_domain=log_domain, grad=grad, return_plan=True)
    (loss, plan), (ref, ref_plan) = (f(x, y, **options) for f in (sinkhorn_divergence, sinkhorn_divergence_reference))
    torch.testing.assert_close(loss, ref)
    torch.testing.assert_close(plan, ref_plan)
    assert loss.shape == (2, 2)
    weight = features(device, 2, 2, seed=5)
    torch.testing.assert_close(*(torch.autograd.grad(v, x + y, weight) for v in (loss, ref)))


@pytest.mark.parametrize("n", [(0,), (2, 0)])
def test_no_problems(device, n):
    cost = torch.zeros(*n, 3, 4, device=device, requires_grad=True)
    for log_domain in (False, True):
        loss, plan = sinkhorn(cost, log_domain=log_domain, return_plan=True)
        assert loss.shape == n and plan.shape == cost.shape
        assert torch.autograd.grad(loss.sum(), cost)[0].shape == cost.shape
    x = torch.zeros(*n, 3, 6, device=device, requires_grad=True)
    loss = sinkhorn_divergence(x, x.detach(), debiased=True)
    assert loss.shape == n and torch.autograd.grad(loss.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("log_domain", [False, True])
def test_value_by_hand(device, log_domain):
    # Q = [[0, 1], [1, 0]], eps = 1 / ln 3: K = [[1, 1/3], [1/3, 1]]. Its rows and columns all sum to 4/3, so
    # b = 1/2, a = (1/2) / (4/3 * 1/2) = 3/4, b = (1/2) / (4/3 * 3/4) = 1/2: a fixed point.
    # P = K * 3/8 = [[3/8, 1/8], [1/8, 3/8]], loss = 1/8 + 1/8 = 1/4. Envelope: the gradient is P.
    cost = torch.tensor([[0.0, 1], [1, 0]], device=device, dtype=torch.float64, requires_grad=True)
    loss, plan = sinkhorn(cost, 1 / math.log(3), 4, log_domain=log_domain, grad="envelope", return_plan=True)
    expected = torch.tensor([[3, 1], [1, 3]], device=device, dtype=torch.float64) / 8
    torch.testing.assert_close(loss, expected.new_tensor(0.25))
    torch.testing.assert_close(plan, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, cost)[0], expected)


def test_cosine_cost_by_hand(device):
    # <(3, 4), (4, 3)> = 24 over 5 * 5: cost 0.04; against (-3, -4): -25 / 25: cost 2; a dead channel: cost 1
    x = torch.tensor([[3.0, 4]], device=device)
    y = torch.tensor([[4.0, 3], [-3, -4], [0, 0]], device=device)
    torch.testing.assert_close(cosine_cost(x, y), torch.tensor([[0.04, 2, 1]], device=device))


@pytest.mark.parametrize("log_domain", [False, True])
def test_marginals(device, log_domain):
    cost = make_cost(device, (2,), 24, 20, k=256, dtype=torch.float32)
    _, plan = sinkhorn(cost, log_domain=log_domain, return_plan=True)
    torch.testing.assert_close(plan.sum(-1), torch.full((2, 24), 1 / 24, device=device), rtol=0, atol=1e-6)
    torch.testing.assert_close(plan.sum(-2), torch.full((2, 20), 1 / 20, device=device), rtol=1e-4, atol=0)
    _, plan = sinkhorn(cost.double(), iters=100, log_domain=log_domain, return_plan=True)
    torch.testing.assert_close(plan.sum(-2), torch.full_like(plan[:, 0], 1 / 20), rtol=1e-6, atol=0)


def test_range_and_limits(device):
    cost = make_cost(device, (3,), 17, 17)
    losses = [sinkhorn(cost, eps, 300, log_domain=True) for eps in (0.02, 0.05, 0.1, 1, 1e6)]
    assert all((0 <= v).all() and (v <= 2).all() for v in losses)
    assert all((low <= high + 1e-9).all() for low, high in zip(losses, losses[1:]))  # converged: grows with eps
    torch.testing.assert_close(losses[-1], cost.mean(dim=(-2, -1)), rtol=1e-6, atol=0)


def test_identical_inputs(device):
    x = features(device, 2, 11, 30, dtype=torch.float32)
    assert sinkhorn_divergence(x, x.clone(), debiased=True).abs().max() < 1e-6
    assert (sinkhorn_divergence(x, x.clone()) > 1e-4).all()  # the entropic bias


@pytest.mark.parametrize("debiased", [False, True])
def test_invariances(device, debiased):
    x, y = features(device, 2, 12, 30), features(device, 2, 12, 30, seed=1)
    rng = torch.Generator().manual_seed(3)
    rows, cols, places = (torch.randperm(n, generator=rng).to(device) for n in (12, 12, 30))

    def loss(x, y):
        return sinkhorn_divergence(x, y, iters=300, debiased=debiased)

    expected = loss(x, y)
    torch.testing.assert_close(loss(x[:, rows], y[:, cols]), expected)  # channels, each side on its own
    torch.testing.assert_close(loss(x[..., places], y[..., places]), expected)
    torch.testing.assert_close(loss(x * (1 + rows).view(-1, 1), y * 1e-3), expected)  # positive scale of a channel
    torch.testing.assert_close(loss(y, x), expected)  # after convergence
    assert (loss(x[..., places], y) - expected).abs().min() > 1e-3  # positions of one side alone matter


def test_plain_equals_log_domain(device):
    cost = make_cost(device, (2,), 21, 18, dtype=torch.float32).requires_grad_()
    plain, log = sinkhorn(cost), sinkhorn(cost, log_domain=True)
    torch.testing.assert_close(plain, log, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), cost)[0] for v in (plain, log)), rtol=1e-4, atol=1e-7)


def test_log_domain_takes_what_plain_cannot(device):
    cost = make_cost(device, (1,), 21, 18, dtype=torch.float32)
    for q, eps in ((cost, 0.005), (cost * 1e4, 50.0), (cost - 1e3, 0.1)):
        loss, plan = sinkhorn(q, eps, log_domain=True, return_plan=True)
        ref = sinkhorn_reference(q.double(), eps, log_domain=True)
        torch.testing.assert_close(loss.double(), ref, rtol=1e-4, atol=0)
        torch.testing.assert_close(plan.sum(-1), torch.full((1, 21), 1 / 21, device=device), rtol=1e-3, atol=0)


@pytest.mark.parametrize("log_domain", [False, True])
def test_gradcheck(device, log_domain):
    cost = make_cost(device, (2,), 4, 3).requires_grad_()
    torch.autograd.gradcheck(lambda q: sinkhorn(q, 0.3, 3, log_domain=log_domain), cost)
    x, y = make_pairs(device, rows=3, cols=4)
    torch.autograd.gradcheck(lambda *t: sinkhorn_divergence(t[:2], t[2:], 0.3, 3, debiased=True), (*x, *y))


def test_envelope_is_the_gradient_of_the_entropic_objective(device):
    cost = make_cost(device, (2,), 8, 6).requires_grad_()
    loss, plan = sinkhorn(cost, iters=2000, grad="envelope", return_plan=True)
    envelope = torch.autograd.grad(loss.sum(), cost)[0]
    torch.testing.assert_close(envelope, plan)

    def objective(q):
        p = sinkhorn_reference(q, iters=2000, log_domain=True, return_plan=True)[1]
        return (q * p + 0.1 * p * (p.log() - 1)).sum()

    direction = features(device, 2, 8, 6, seed=7)
    step = (objective(cost + 1e-5 * direction) - objective(cost - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((envelope * direction).sum(), step.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("grad", GRADS)
def test_dead_channels(device, grad):
    x, y = features(device, 2, 6, 10, dtype=torch.float32), features(device, 2, 5, 10, seed=1, dtype=torch.float32)
    x[:, 2], y[0, 1], y[1] = 0, y[0, 1] * 2e-7, 0  # dead, below the floor of 1e-6, all dead
    x, y = x.requires_grad_(), y.requires_grad_()
    loss, ref = (f(x, y, grad=grad) for f in (sinkhorn_divergence, sinkhorn_divergence_reference))
    torch.testing.assert_close(loss, ref)
    torch.testing.assert_close(loss[1], torch.ones_like(loss[1]))  # all costs are 1
    grads = [torch.autograd.grad(v.sum(), (x, y)) for v in (loss, ref)]
    assert all(g.isfinite().all() for g in grads[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_batch_equals_loop(device):
    cost = make_cost(device, (2, 3), dtype=torch.float32)
    assert torch.equal(sinkhorn(cost), torch.stack([torch.stack([sinkhorn(q) for q in row]) for row in cost]))
    x, y = make_pairs(device)
    torch.testing.assert_close(sinkhorn_divergence(x, y), torch.stack([sinkhorn_divergence(*p) for p in zip(x, y)]))


@pytest.mark.parametrize("debiased", [False, True])
def test_padding_does_not_change_a_loss(device, debiased):
    x, y = features(device, 1, 9, 20), features(device, 1, 9, 20, seed=1)
    padded = [torch.cat([t, torch.full((1, 9, 12), 3.0, device=device, dtype=t.dtype)], dim=-1) for t in (x, y)]
    mask = torch.arange(32, device=device) < 20
    expected = sinkhorn_divergence(x, y, debiased=debiased)
    torch.testing.assert_close(sinkhorn_divergence(*padded, debiased=debiased, mask=mask), expected)
    torch.testing.assert_close(sinkhorn_divergence_reference(*padded, debiased=debiased, mask=mask), expected)
    both = sinkhorn_divergence([x, padded[0]], [y, padded[1]], debiased=debiased, mask=[mask[None, :20], mask[None]])
    torch.testing.assert_close(both, torch.stack([expected, expected]))
    assert (sinkhorn_divergence(*padded, debiased=debiased) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs_are_computed_in_float32(device, dtype):
    # The loss is that of the rounded inputs, so it equals the reference of them to float32 accuracy. Gradients come
    # back in 16 bits: off by half an ulp.
    x, y = features(device, 2, 9, 20, dtype=dtype), features(device, 2, 8, 20, seed=1, dtype=dtype)
    cost = cosine_cost(x, y).to(dtype).requires_grad_()
    loss, ref = sinkhorn(cost), sinkhorn_reference(cost.detach().double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), ref, rtol=1e-6, atol=0)
    loss = sinkhorn_divergence(x.requires_grad_(), y.requires_grad_(), debiased=True)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    ref = sinkhorn_divergence_reference(*wide, debiased=True)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), ref, rtol=0, atol=2e-6)
    got, expected = torch.autograd.grad(loss.sum(), (x, y)), torch.autograd.grad(ref.sum(), wide)
    half_ulp = torch.finfo(dtype).eps / 2
    for a, b in zip(got, expected):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=1.01 * half_ulp, atol=1e-6)


def test_autocast_lowers_nothing(device):
    x = features(device, 2, 9, 20, dtype=torch.float32).requires_grad_()
    y = features(device, 2, 8, 20, seed=1, dtype=torch.float32)
    cost = cosine_cost(x, y).detach().requires_grad_()

    def run():
        loss = sinkhorn_divergence(x, y, debiased=True) + sinkhorn(cost)
        return cosine_cost(x, y), loss, *torch.autograd.grad(loss.sum(), (x, cost))

    expected = run()
    with torch.autocast(device, dtype=torch.bfloat16):
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_not_contiguous(device):
    base = make_cost(device, (2,), 13, 19)
    cost = base.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    loss, ref = sinkhorn(cost), sinkhorn_reference(base)
    torch.testing.assert_close(loss, ref)
    expanded = torch.ones((), device=device, dtype=cost.dtype).expand(2)
    grad = torch.autograd.grad(loss, cost, expanded)[0]
    assert grad.is_contiguous()
    base = base.requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(sinkhorn_reference(base).sum(), base)[0])
    x = features(device, 20, 2, 9).permute(1, 2, 0).requires_grad_()
    y = features(device, 1, 8, 20, seed=1).expand(2, 8, 20)
    loss, ref = sinkhorn_divergence(x, y), sinkhorn_divergence_reference(x, y)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (loss, ref)))


@pytest.mark.parametrize("log_domain", [False, True])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("with_norms", [False, True])
def test_opcheck(device, log_domain, unroll, with_norms):
    x, y = features(device, 2, 4, 9), features(device, 2, 3, 9, seed=1)
    gram, *norms = torch.ops.d2ops.sinkhorn_gram([x], [y])
    cost = gram if with_norms else make_cost(device, (1, 2), 4, 3)
    norms = norms if with_norms else [None, None]
    leaves = [t.clone().requires_grad_() if t is not None else None for t in (cost, *norms)]
    args = (0.1, 3, log_domain, unroll, False)
    torch.library.opcheck(torch.ops.d2ops.sinkhorn.default, (*leaves, *args))
    loss, _, scalings = torch.ops.d2ops.sinkhorn(cost, *norms, *args)
    torch.library.opcheck(
        torch.ops.d2ops.sinkhorn_backward.default,
        (torch.ones_like(loss), cost, *norms, scalings, 0.1, log_domain, unroll),
    )


def test_opcheck_gram(device):
    x, y = make_pairs(device)
    torch.library.opcheck(torch.ops.d2ops.sinkhorn_gram.default, (x, y))
    x, y = ([t.detach() for t in s] for s in (x, y))
    gram, norm_x, norm_y = torch.ops.d2ops.sinkhorn_gram(x, y)
    args = (gram, norm_x, norm_y, x, y, norm_x, norm_y)
    torch.library.opcheck(torch.ops.d2ops.sinkhorn_gram_backward.default, (*args, True, False))


def test_compiles(device):
    x, y = make_pairs(device, dtype=torch.float32, cols=9)

    def step(x, y):
        loss, plan = sinkhorn_divergence(x, y, debiased=True, return_plan=True)
        return loss.sum() + sinkhorn(plan).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [(f(x, y), *torch.autograd.grad(f(x, y), x + y)) for f in (step, compiled)]
    torch.testing.assert_close(*results)


def test_one_side_requires_grad(device):
    x, y = make_pairs(device)
    both = torch.autograd.grad(sinkhorn_divergence(x, y).sum(), x + y)
    fixed = [t.detach() for t in x]
    torch.testing.assert_close(torch.autograd.grad(sinkhorn_divergence(fixed, y).sum(), y), both[2:])
    fixed = [t.detach() for t in y]
    torch.testing.assert_close(torch.autograd.grad(sinkhorn_divergence(x, fixed).sum(), x), both[:2])
    assert not sinkhorn_divergence(fixed, fixed).requires_grad


@pytest.mark.parametrize("log_domain", [False, True])
def test_same_bits_on_every_run_and_number_of_threads(device, log_domain):
    x, y = features(device, 5, 33, 50, dtype=torch.float32), features(device, 5, 35, 50, seed=1, dtype=torch.float32)
    cost = cosine_cost(x, y).requires_grad_()
    before = torch.get_num_threads()

    def run(threads):
        torch.set_num_threads(threads)
        loss = sinkhorn(cost, log_domain=log_domain)
        return loss, torch.autograd.grad(loss.sum(), cost)[0]

    try:
        first, *others = [run(n) for n in (1, 1, 2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


def test_no_second_derivative(device):
    cost = make_cost(device).requires_grad_()
    (grad,) = torch.autograd.grad(sinkhorn(cost).sum(), cost, create_graph=True)
    with pytest.raises(RuntimeError, match="sinkhorn_backward has no derivative"):
        grad.sum().backward()


def test_reference_by_choice(device, monkeypatch):
    x, y = make_pairs(device)
    expected = sinkhorn_divergence(x, y, debiased=True), sinkhorn(cosine_cost(x[0], y[0]))
    monkeypatch.setenv("SHARED_OPS", "reference")
    torch.testing.assert_close((sinkhorn_divergence(x, y, debiased=True), sinkhorn(cosine_cost(x[0], y[0]))), expected)


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, r"cost has shape \[3\]; expected \(..., C1, C2\)", lambda q: sinkhorn(q[0, 0])),
        (ValueError, r"cost has shape \[2, 4, 0\].*at least 1", lambda q: sinkhorn(q[..., :0])),
        (TypeError, "cost has dtype Int; expected float32", lambda q: sinkhorn(q.int())),
        (ValueError, "eps is 0; expected a positive number", lambda q: sinkhorn(q, 0.0)),
        (ValueError, "eps is nan", lambda q: sinkhorn(q, math.nan)),
        (ValueError, "iters is 0; expected at least 1", lambda q: sinkhorn(q, iters=0)),
        (ValueError, "sinkhorn: grad is 'implicit'", lambda q: sinkhorn(q, grad="implicit")),
        (ValueError, "sinkhorn_divergence: grad is 'detach'", lambda q: sinkhorn_divergence(q, q, grad="detach")),
        (ValueError, r"y has shape \[2, 4, 2\] and x \[2, 4, 3\]", lambda q: sinkhorn_divergence(q, q[..., :2])),
        (ValueError, r"x has shape \[3\]", lambda q: sinkhorn_divergence(q[0, 0], q[0, 0])),
        (TypeError, "y has dtype Double and x has Float", lambda q: sinkhorn_divergence(q, q.double())),
        (ValueError, "x holds 2 tensors and y 1", lambda q: sinkhorn_divergence([q, q], [q])),
        (ValueError, "x holds no tensors; expected one for each", lambda q: sinkhorn_divergence([], [])),
        (ValueError, "pair 1 has shapes", lambda q: sinkhorn_divergence([q, q[:1]], [q, q[:1]])),
        (ValueError, "mask holds 1 masks, x 2 tensors", lambda q: sinkhorn_divergence([q, q], [q, q], mask=[q > 0])),
        (TypeError, "one of x and y is a tensor, the other a sequence", lambda q: sinkhorn_divergence(q, [q])),
    ],
)
def test_errors(device, error, message, call):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 4, 3, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: two devices are needed")
def test_errors_of_devices():
    q = torch.ones(2, 4, 3)
    with pytest.raises(ValueError, match="sinkhorn_divergence: y is on cpu and x on cuda:0"):
        sinkhorn_divergence(q.cuda(), q)
    with pytest.raises(ValueError, match="sinkhorn: norm_x is on cpu and cost on cuda:0"):
        torch.ops.d2ops.sinkhorn(q.cuda(), q[..., 0], q[:, 0], 0.1, 10, False, True, False)


@pytest.mark.parametrize(
    "message, norms",
    [
        ("one of norm_x and norm_y is given", [(2, 4), None]),
        (r"norm_x has shape \[2, 3\]; expected \[2, 4\]", [(2, 3), (2, 3)]),
        (r"norm_y has shape \[2, 4\]; expected \[2, 3\]", [(2, 4), (2, 4)]),
    ],
)
def test_errors_of_norms(device, message, norms):
    norms = [None if s is None else torch.ones(s, device=device) for s in norms]
    with pytest.raises(ValueError, match=message):
        torch.ops.d2ops.sinkhorn(torch.ones(2, 4, 3, device=device), *norms, 0.1, 10, False, True, False)


@pytest.mark.parametrize("log_domain", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(bad, log_domain):
    cost = torch.ones(2, 4, 3)
    cost[1, 2, 0] = bad
    with pytest.raises(ValueError, match=r"sinkhorn: cost of shape \[2, 4, 3\] holds NaN or infinite values"):
        sinkhorn(cost, log_domain=log_domain)
    x = torch.ones(2, 4, 3)
    with pytest.raises(ValueError, match=r"sinkhorn_divergence: y of shape \[2, 4, 3\] holds NaN or infinite values"):
        sinkhorn_divergence([x, x], [x, cost], log_domain=log_domain)


def test_kernel_out_of_range():
    cost = make_cost("cpu", (2,), 13, 19, dtype=torch.float32)
    with pytest.raises(ValueError, match="at eps 0.005 .* leaves the range of Float; use log_domain=True or a larger"):
        sinkhorn(cost, 0.005)
