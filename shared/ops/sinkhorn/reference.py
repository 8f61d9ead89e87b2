"""The Sinkhorn loss in plain PyTorch: the equations, and the path of `SHARED_OPS=reference`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NORM_FLOOR = 1e-6


def widen(x: Tensor) -> Tensor:
    """float64 stays, everything narrower becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def cosine_cost(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ground cost between channels (arXiv:1903.11851, Alg. 1): Q_xy = 1 - <x, y> / (|x| |y|), in [0, 2].

    x: (..., C1, k) and y: (..., C2, k), a channel a row, k positions. mask: bool, broadcastable to (..., k): positions
    where it is False count as zero in both, so that padding changes nothing. Norms below 1e-6 count as 1e-6: a dead
    channel has cost 1 and finite gradients. Returns (..., C1, C2) in float32 (float64 of float64), also under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = widen(x), widen(y)
        if mask is not None:
            keep = mask.bool().unsqueeze(-2)
            x, y = x.masked_fill(~keep, 0), y.masked_fill(~keep, 0)
        x = x / x.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
        y = y / y.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
        return 1 - x @ y.transpose(-1, -2)


def plan_of(cost: Tensor, eps: float, iters: int, log_domain: bool) -> Tensor:
    """P = diag(b) K diag(a) after `iters` updates of a and then b, K = exp(-Q / eps), from b = 1 / C1."""
    rows, cols = cost.shape[-2:]
    if log_domain:
        log_kernel = -cost / eps
        log_b = cost.new_full(cost.shape[:-1], -math.log(rows))
        for _ in range(iters):
            log_a = -math.log(cols) - torch.logsumexp(log_kernel + log_b.unsqueeze(-1), dim=-2)
            log_b = -math.log(rows) - torch.logsumexp(log_kernel + log_a.unsqueeze(-2), dim=-1)
        return torch.exp(log_kernel + log_b.unsqueeze(-1) + log_a.unsqueeze(-2))
    kernel = torch.exp(-cost / eps)
    b = cost.new_full((*cost.shape[:-1], 1), 1 / rows)
    for _ in range(iters):
        a = 1 / cols / (kernel.transpose(-1, -2) @ b)
        b = 1 / rows / (kernel @ a)
    return b * kernel * a.transpose(-1, -2)


def sinkhorn_reference(
    cost: Tensor,
    eps: float = 0.1,
    iters: int = 10,
    *,
    log_domain: bool = False,
    grad: str = "unroll",
    return_plan: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `sinkhorn`."""
    with torch.autocast(cost.device.type, enabled=False):
        cost = widen(cost)
        plan = plan_of(cost if grad == "unroll" else cost.detach(), eps, iters, log_domain)
        loss = (cost * plan).sum(dim=(-2, -1))
    return (loss, plan.detach()) if return_plan else loss


def sinkhorn_divergence_reference(
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
    """See `sinkhorn_divergence`."""
    if not isinstance(x, Tensor):
        masks = [None] * len(x) if mask is None else mask
        kwargs = dict(debiased=debiased, log_domain=log_domain, grad=grad, return_plan=return_plan)
        parts = [sinkhorn_divergence_reference(u, v, eps, iters, mask=m, **kwargs) for u, v, m in zip(x, y, masks)]
        return tuple(torch.stack(p) for p in zip(*parts)) if return_plan else torch.stack(parts)

    def loss_and_plan(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        cost = cosine_cost(u, v, mask)
        return sinkhorn_reference(cost, eps, iters, log_domain=log_domain, grad=grad, return_plan=True)

    loss, plan = loss_and_plan(x, y)
    if debiased:
        loss = 2 * loss - loss_and_plan(x, x)[0] - loss_and_plan(y, y)[0]
    return (loss, plan) if return_plan else loss
