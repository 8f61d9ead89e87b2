"""The Sinkhorn loss of "Feature Intertwiner for Object Detection" (arXiv:1903.11851, sec. 3.3, Eq. 4, Alg. 1).

What it gains. At the paper's size (C = 256 channels, 10 iterations, one problem an image and level pair) the loss
itself is small: a few million operations a problem against tens of billions in the networks around it. So a whole
training step on a GPU gains little: the launches of the eager loop, by estimate a millisecond of some hundreds. The op
pays where there are many problems (large batches, all level pairs, the debiased loss with three problems each), for
larger C, on the CPU, and in memory: eager autograd keeps several C1 x C2 matrices a problem, this op 2 L vectors.
benchmarks/ops/sinkhorn.py measures the loss alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import library
from .reference import sinkhorn_divergence_reference, sinkhorn_reference, widen


def _check_grad(op: str, grad: str) -> None:
    if grad not in ("unroll", "envelope"):
        raise ValueError(f"{op}: grad is {grad!r}; expected 'unroll' or 'envelope'.")


def sinkhorn(
    cost: Tensor,
    eps: float = 0.1,
    iters: int = 10,
    *,
    log_domain: bool = False,
    grad: str = "unroll",
    return_plan: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cost of transporting C1 equal masses to C2 equal masses (Eq. 4), by Sinkhorn's iteration (Alg. 1).

        K = exp(-Q / eps),   b = 1 / C1;   `iters` times:  a = (1 / C2) / (K^T b),   b = (1 / C1) / (K a)
        P = diag(b) K diag(a),   loss = sum_xy Q_xy P_xy

    Differs from the paper: the plan has mass 1 (the paper's Eq. 4, taken literally, has mass C), so the loss lies
    between the smallest and the largest cost. The paper's loop, from 0 to L inclusive, runs once more than `iters`.

    cost: (..., C1, C2), a matrix Q for each problem. eps: of the unit of the cost, positive. log_domain: update
    logarithms, for an eps so small or a cost so large that K leaves the range of the type (cosine cost in float32:
    eps < 0.023). Slower; same values elsewhere.
    grad: "unroll" differentiates the loop, exactly; the backward replays it from 2 `iters` vectors. "envelope" takes
    P for constant, dloss/dQ = P: at convergence the gradient of the entropic objective <Q, P> + eps sum P log P.

    Returns the loss (...), and with `return_plan` also P (..., C1, C2), detached in either mode; both float32
    (float64 for float64), also for 16-bit costs and under autocast. Row sums of P are 1 / C1 up to rounding, column
    sums approach 1 / C2. Raises ValueError for a wrong shape, eps <= 0, iters < 1, and on the CPU for a cost that is
    not finite or a K that is out of range (on CUDA with SHARED_OPS_CHECK=1; a NaN loss without); TypeError for a dtype.
    """
    _check_grad("sinkhorn", grad)
    if library.use_reference():
        return sinkhorn_reference(cost, eps, iters, log_domain=log_domain, grad=grad, return_plan=return_plan)
    cost = widen(cost) if cost.dtype in (torch.float16, torch.bfloat16) else cost
    loss, plan, _ = torch.ops.d2ops.sinkhorn(cost, None, None, eps, iters, log_domain, grad == "unroll", return_plan)
    return (loss, plan.detach()) if return_plan else loss


def sinkhorn_divergence(
    x: Tensor | Sequence[Tensor],
    y: Tensor | Sequence[Tensor],
    eps: float = 0.1,
    iters: int = 10,
    *,
    debiased: bool = False,
    mask: Tensor | Sequence[Tensor] | None = None,
    log_domain: bool = False,
    grad: str = "unroll",
    return_plan: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`sinkhorn` of the cosine cost between channels (Alg. 1), W(x, y); one launch for all images and level pairs.

    x: (..., C1, k) and y: (..., C2, k), channels and positions, such as the flattened outputs of the critic H. Or two
    equally long sequences of such, one pair of tensors a pair of levels: alike in all but k. mask: as in `cosine_cost`,
    (for sequences one a pair): positions that are False count as zero, so padding changes no loss.
    debiased: 2 W(x, y) - W(x, x) - W(y, y) (sec. 6.3, which calls it biased), 0 for x = y; it may be slightly negative.
    The three terms are problems of the same launch when C1 = C2. Other arguments: as in `sinkhorn`.

    Returns the loss (...), stacked (pairs, ...) for sequences; with `return_plan` also the plan of W(x, y), detached.
    float32 (float64 for float64) whatever comes in: inner products are library GEMMs in that type, out of autocast
    (on CUDA they follow torch.backends.cuda.matmul). Channels with a norm below 1e-6 have cost 1 and finite gradients.
    Raises ValueError for shapes, devices, eps, iters or values, TypeError for dtypes, as `sinkhorn`.
    """
    _check_grad("sinkhorn_divergence", grad)
    options = dict(debiased=debiased, mask=mask, log_domain=log_domain, grad=grad, return_plan=return_plan)
    if library.use_reference():
        return sinkhorn_divergence_reference(x, y, eps, iters, **options)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        options["mask"] = None if mask is None else [mask]
        result = sinkhorn_divergence([x], [y], eps, iters, **options)
        return tuple(r.squeeze(0) for r in result) if return_plan else result.squeeze(0)
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        raise TypeError("sinkhorn_divergence: one of x and y is a tensor, the other a sequence; expected two alike.")
    if len(x) == 0:
        raise ValueError("sinkhorn_divergence: x holds no tensors; expected one for each pair of levels.")
    xs, ys = _prepare("x", x, mask), _prepare("y", y, mask)

    def transport(xs: list[Tensor], ys: list[Tensor], with_plan: bool) -> tuple[Tensor, Tensor]:
        gram, norm_x, norm_y = torch.ops.d2ops.sinkhorn_gram(xs, ys)
        unroll = grad == "unroll"
        return torch.ops.d2ops.sinkhorn(gram, norm_x, norm_y, eps, iters, log_domain, unroll, with_plan)[:2]

    pairs = len(xs)
    if not debiased:
        loss, plan = transport(xs, ys, return_plan)
    elif len(ys) == pairs and xs[0].shape[-2:-1] == ys[0].shape[-2:-1]:
        loss, plan = transport(xs + xs + ys, ys + xs + ys, return_plan)
        loss, plan = 2 * loss[:pairs] - loss[pairs : 2 * pairs] - loss[2 * pairs :], plan[:pairs]
    else:
        loss, plan = transport(xs, ys, return_plan)
        loss = 2 * loss - transport(xs, xs, False)[0] - transport(ys, ys, False)[0]
    return (loss, plan.detach()) if return_plan else loss


def _prepare(name: str, tensors: Sequence[Tensor], mask: Sequence[Tensor] | None) -> list[Tensor]:
    """Wide enough to compute in, positions outside the mask zeroed."""
    if mask is not None and (isinstance(mask, Tensor) or len(mask) != len(tensors)):
        count = "one tensor" if isinstance(mask, Tensor) else f"{len(mask)} masks"
        raise ValueError(f"sinkhorn_divergence: mask holds {count}, {name} {len(tensors)} tensors; expected as many.")
    wide = [widen(t) if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
    return wide if mask is None else [t.masked_fill(~m.bool().unsqueeze(-2), 0) for t, m in zip(wide, mask)]


if library.available:

    @torch.library.register_fake("d2ops::sinkhorn")
    def _(cost, norm_x, norm_y, eps, iters, log_domain, unroll, with_plan):
        *lead, rows, cols = cost.shape
        scalings = cost.new_empty(*lead, iters if unroll else 1, cols + rows)
        return cost.new_empty(lead), cost.new_empty(cost.shape if with_plan else (0,)), scalings

    @torch.library.register_fake("d2ops::sinkhorn_backward")
    def _(grad, cost, norm_x, norm_y, scalings, eps, log_domain, unroll):
        return tuple(cost.new_empty((0,) if t is None else t.shape) for t in (cost, norm_x, norm_y))

    def _setup_context(ctx, inputs, output):
        cost, norm_x, norm_y, ctx.eps, _, ctx.log_domain, ctx.unroll, _ = inputs
        _, plan, scalings = output
        ctx.mark_non_differentiable(plan, scalings)
        ctx.set_materialize_grads(False)  # no zeros in the place of gradients of the scalings
        ctx.save_for_backward(cost, norm_x, norm_y, scalings)

    def _backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 8
        cost, norm_x, norm_y, scalings = ctx.saved_tensors
        grads = torch.ops.d2ops.sinkhorn_backward(
            grad, cost, norm_x, norm_y, scalings, ctx.eps, ctx.log_domain, ctx.unroll
        )
        wanted = (g if needed else None for g, needed in zip(grads, ctx.needs_input_grad))
        return *wanted, None, None, None, None, None

    torch.library.register_autograd("d2ops::sinkhorn", _backward, setup_context=_setup_context)

    @torch.library.register_fake("d2ops::sinkhorn_gram")
    def _(x, y):
        *lead, rows, _ = x[0].shape
        cols = y[0].shape[-2]
        return tuple(x[0].new_empty(len(x), *lead, *s) for s in ((rows, cols), (rows,), (cols,)))

    @torch.library.register_fake("d2ops::sinkhorn_gram_backward")
    def _(grad_gram, grad_norm_x, grad_norm_y, x, y, norm_x, norm_y, needs_x, needs_y):
        return [t.new_empty(t.shape) for t in x if needs_x], [t.new_empty(t.shape) for t in y if needs_y]

    def _setup_gram_context(ctx, inputs, output):
        x, y = inputs
        _, norm_x, norm_y = output
        ctx.pairs = len(x)
        ctx.save_for_backward(*x, *y, norm_x, norm_y)

    def _gram_backward(ctx, *grads):
        *features, norm_x, norm_y = ctx.saved_tensors
        x, y = features[: ctx.pairs], features[ctx.pairs :]
        needs = [any(n) for n in ctx.needs_input_grad]
        grad_x, grad_y = torch.ops.d2ops.sinkhorn_gram_backward(*grads, x, y, norm_x, norm_y, *needs)
        return grad_x or [None] * ctx.pairs, grad_y or [None] * ctx.pairs

    torch.library.register_autograd("d2ops::sinkhorn_gram", _gram_backward, setup_context=_setup_gram_context)
    library.once_differentiable("sinkhorn_backward", "sinkhorn_gram_backward")
