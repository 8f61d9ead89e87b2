"""Local importance-based pooling (LIP, arXiv:1908.04156, sec. 3.2): the public function, fake kernels and autograd."""

import torch
from torch import Tensor

from .. import library
from .reference import lip_pool2d_reference


def lip_pool2d(
    x: Tensor,
    logit: Tensor,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    *,
    gate: float | None = None,
) -> Tensor:
    """Average each window of `x` with the weights softmax(logit), taken over that window, per channel.

        y[n,c,o] = sum_{i in window(o)} exp(l[n,c,i]) x[n,c,i] / sum_{i in window(o)} exp(l[n,c,i])

    the paper's pooling with importance F = exp(l). Positions in the padding have no weight. Any finite logits are
    safe: a maximum is subtracted per window. A logit of -inf gives its position no weight (windows of nothing but
    such positions raise). Adding a constant to all logits of a channel changes nothing.

    x, logit: (N, C, H, W), float32, float64, float16 or bfloat16, both alike; N and C may be 0.
    kernel_size, stride, padding: integers or (vertical, horizontal) pairs, in input cells. The window must be at
        least as large as the stride (the paper's condition), the padding at most half the window.
    gate: where given, `logit` is the raw map z, and l = gate * sigmoid(z) (the paper's "amplified sigmoid", gate 12)
        is formed inside, forward and backward: no gated map is stored.

    Returns (N, C, floor((H + 2 padding - kernel_size) / stride) + 1, ...) in the dtype and memory format of x
    (a logit in another memory format is copied once). Sums are in float32, in float64 for float64.
    Under autocast x and logit may differ in dtype: both are then taken to the wider one, as rounding logits near 12
    to bfloat16 would change weights by 3 %, and the result returns to the dtype of x.
    The gradient of logit uses the returned y, in its dtype, and weights exp(l - log-sum-exp) from a float32 statistic:
    their relative error is about 6e-8 times the logits' magnitude.

    Raises ValueError or TypeError with the argument's name for a wrong rank, shape, dtype, device or window; on the
    CPU (on CUDA with SHARED_OPS_CHECK=1) also where x or logit make the output NaN or infinite.
    """
    window = _pair("kernel_size", kernel_size), _pair("stride", stride), _pair("padding", padding)
    dtype = x.dtype
    if x.dtype != logit.dtype and torch.is_autocast_enabled(x.device.type):
        wider = torch.promote_types(x.dtype, logit.dtype)
        x, logit = x.to(wider), logit.to(wider)
    if library.use_reference():
        return lip_pool2d_reference(x, logit, *window, gate=gate).to(dtype)
    keep_lse = torch.is_grad_enabled() and (x.requires_grad or logit.requires_grad)
    return torch.ops.d2ops.lip_pool2d(x, logit, *window, gate, keep_lse)[0].to(dtype)


def _pair(name: str, value) -> list[int]:
    pair = list(value) if isinstance(value, (tuple, list)) else [value, value]
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"lip_pool2d: {name} is {value!r}; expected an integer or a pair of integers.")
    return pair


def _memory_format(x: Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake(x, logit, kernel_size, stride, padding, gate, keep_lse):
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel_size, stride, padding)]
    y = x.new_empty([*x.shape[:2], *size]).to(memory_format=_memory_format(x))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y, torch.empty_like(y, dtype=dtype) if keep_lse else x.new_empty(0, dtype=dtype)


def _fake_backward(grad, x, logit, y, lse, kernel_size, stride, padding, gate, needs):
    like = torch.empty_like(x, memory_format=_memory_format(x))
    return tuple(torch.empty_like(like) if needed else x.new_empty(0) for needed in needs)


def _setup_context(ctx, inputs, output):
    x, logit, *ctx.settings, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the statistic
    ctx.save_for_backward(x, logit, *output)


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 7
    needs = list(ctx.needs_input_grad[:2])
    grads = torch.ops.d2ops.lip_pool2d_backward(grad, *ctx.saved_tensors, *ctx.settings, needs)
    return *(g if needed else None for g, needed in zip(grads, needs)), None, None, None, None, None


if library.available:
    torch.library.register_fake("d2ops::lip_pool2d")(_fake)
    torch.library.register_fake("d2ops::lip_pool2d_backward")(_fake_backward)
    torch.library.register_autograd("d2ops::lip_pool2d", _backward, setup_context=_setup_context)
    library.once_differentiable("lip_pool2d_backward")
