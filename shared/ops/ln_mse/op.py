"""The distance between two feature maps in LabelEnc's intermediate supervision (arXiv:2007.03282, Eq. 10)."""

import torch
from torch import Tensor

from shared.ops import library
from shared.ops.ln_mse.reference import ln_mse_reference


def ln_mse(x: Tensor, y: Tensor, *, dims: str = "chw", eps: float = 1e-5, reduction: str = "mean") -> Tensor:
    """Squared difference of two layer-normalised maps.

    Eq. (10), one level:  || LN(x) - LN(y) ||^2,   LN(x) = (x - mean) / sqrt(variance + eps), without scale and shift

    Worked out from the moments of each image, without the normalised maps: with the variances v, the covariance c and
    s = sqrt(v + eps), the mean over an image is v_x / s_x^2 + v_y / s_y^2 - 2 c / (s_x s_y), about 2 (1 - correlation).
    Hence in [0, 4]: 0 for y = a x + b with a > 0, 4 with a < 0, about 2 for independent maps.

    x, y: (N, C, ...) of one shape, dtype and device. A shared channels_last layout is read as it lies.
    dims: "chw" normalises each image over all its elements (GroupNorm with one group), "c" each position over its
        channels; "c" has no kernel of its own (each position is a row of C, copied unless x and y are channels_last).
    reduction: "mean" over all elements (0 without any), "sum", or "none": the sum of each image, (N,). Several levels
        make one mean as the sum of their "sum" over their joint number of elements.

    Returns float32, or float64 for float64; the sums are worked out in float64. Gradients to x and to y, once; what
    needs none costs nothing. Raises ValueError or TypeError for other shapes, dtypes, devices, eps <= 0, and on the CPU
    for NaN or infinite values (on CUDA with SHARED_OPS_CHECK=1). Under autocast x and y may differ in dtype.
    """
    if dims not in ("chw", "c"):
        raise ValueError(f"ln_mse: dims is {dims!r}; expected 'chw' or 'c'.")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"ln_mse: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'.")
    if x.dtype != y.dtype and torch.is_autocast_enabled(x.device.type):
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    if library.use_reference():
        return ln_mse_reference(x, y, dims=dims, eps=eps, reduction=reduction)
    if dims == "c" and x.shape == y.shape and x.dim() > 2:  # other shapes are left for the op to complain about
        rows = torch.ops.d2ops.ln_mse(*(t.movedim(1, -1).flatten(0, -2) for t in (x, y)), eps)[0]
        sums = rows.reshape(x.shape[0], x.shape[2:].numel()).sum(dim=1)
    else:
        sums = torch.ops.d2ops.ln_mse(x, y, eps)[0]
    if reduction != "none":
        sums = sums.sum() if reduction == "sum" else sums.sum() / max(x.numel(), 1)
    return sums if x.dtype == torch.float64 else sums.float()


def _layout(x: Tensor, y: Tensor) -> torch.memory_format:
    """The layout of the gradients: `ln_mse_layout` of the kernels."""
    formats = [torch.contiguous_format]
    formats += {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(x.dim(), [])
    shared = (f for f in formats if x.is_contiguous(memory_format=f) and y.is_contiguous(memory_format=f))
    return next(shared, torch.contiguous_format)


if library.available:

    @torch.library.register_fake("d2ops::ln_mse")
    def _(x, y, eps):
        return x.new_empty((x.shape[0],), dtype=torch.float64), x.new_empty((x.shape[0], 5), dtype=torch.float64)

    @torch.library.register_fake("d2ops::ln_mse_backward")
    def _(grad, x, y, moments, eps, need_x, need_y):
        full = {"dtype": x.dtype, "device": x.device, "memory_format": _layout(x, y)}
        return tuple(torch.empty(x.shape, **full) if need else x.new_empty((0,)) for need in (need_x, need_y))

    def _setup_context(ctx, inputs, output):
        x, y, ctx.eps = inputs
        ctx.save_for_backward(x, y, output[1])
        ctx.mark_non_differentiable(output[1])

    def _backward(ctx, grad, _):
        need_x, need_y = ctx.needs_input_grad[:2]
        x, y, moments = ctx.saved_tensors
        grad_x, grad_y = torch.ops.d2ops.ln_mse_backward(grad, x, y, moments, ctx.eps, need_x, need_y)
        return grad_x if need_x else None, grad_y if need_y else None, None

    torch.library.register_autograd("d2ops::ln_mse", _backward, setup_context=_setup_context)
    library.once_differentiable("ln_mse_backward")
