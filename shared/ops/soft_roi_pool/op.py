"""Soft RoI pooling: softmax over the positions and weighted sums in one pass, without storing the RoI maps."""

import torch
from torch import Tensor

from .. import library
from .reference import soft_roi_pool_reference


def soft_roi_pool(
    scores: Tensor, values: Tensor, temperature: float = 1.0, mask: Tensor | None = None, return_maps: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Summarise values into one vector a RoI group: Soft ROI Pooling and the softmax before it.

    "Aggregation with Feature Detection" (ICCV 2021), sections 3.1 (Eq. 1) and 3.2. L groups of D RoI maps, C' groups
    of D feature maps; the D axis of both is paired and, like the positions p = (h, w), summed out:

        M[n,l,d,:] = softmax over p of scores[n,l,d,:] / T
        pooled[n,l,c] = sum over d, p of M[n,l,d,p] * values[n,c,d,p]

    Eq. (1) prints T in the denominator only; this is the ordinary softmax with a temperature, which sums to 1.

    Args:
        scores: (N, L, D, H, W), float32, float64, float16 or bfloat16. The output (N, L * D, H, W) of a convolution
            is only viewed so: channel l * D + d. N may be 0, nothing else. Must be finite, or -inf for weight 0.
        values: (N, C', D, H, W), channel c * D + d; dtype and device of scores. Must be finite.
        temperature: T, above 0. Lower is sharper.
        mask: (N, H, W) bool, True where a position takes part. The others get weight and gradient 0. An image
            without any valid position gives 0 everywhere.
        return_maps: also return M, which has a gradient of its own.

    Returns:
        pooled (N, L, C') in the dtype of scores; with return_maps also M (N, L, D, H, W), in float32 where scores are
        half precision: with many positions 1 / (H * W) is too small for float16. Sums are in float32 (float64 for
        float64). Deterministic, on the CPU to the bit for any number of threads.

    Raises:
        ValueError, TypeError: naming the argument. NaN is found on the CPU; on CUDA with SHARED_OPS_CHECK=1.
    """
    if library.use_reference():
        return soft_roi_pool_reference(scores, values, temperature, mask, return_maps)
    pooled, _, _, maps = torch.ops.d2ops.soft_roi_pool(
        scores.contiguous(), values.contiguous(), float(temperature), mask, return_maps
    )
    return (pooled, maps) if return_maps else pooled


def _fake(scores, values, temperature, mask, return_maps):
    n, groups, maps = scores.shape[:3]
    wide = torch.promote_types(scores.dtype, torch.float32)
    return (
        scores.new_empty((n, groups, values.shape[1])),
        scores.new_empty((n, groups, maps, values.shape[1]), dtype=wide),
        scores.new_empty((n, groups, maps, 2), dtype=wide),
        scores.new_empty(scores.shape if return_maps else (0,), dtype=wide),
    )


def _fake_backward(grad_pooled, grad_maps, scores, values, mask, per_map, stats, temperature, need_scores, need_values):
    return (
        scores.new_empty(scores.shape if need_scores else (0,)),
        values.new_empty(values.shape if need_values else (0,)),
    )


def _setup_context(ctx, inputs, output):
    scores, values, ctx.temperature, mask, ctx.return_maps = inputs
    pooled, per_map, stats, maps = output
    ctx.save_for_backward(scores, values, mask, per_map, stats)
    ctx.pooled_shape = pooled.shape
    ctx.mark_non_differentiable(per_map, stats)
    ctx.set_materialize_grads(False)  # no zeros in the size of the maps where nothing reads them


def _backward(ctx, grad_pooled, grad_per_map, grad_stats, grad_maps):
    scores, values, mask, per_map, stats = ctx.saved_tensors
    if grad_pooled is None:
        grad_pooled = scores.new_zeros(ctx.pooled_shape)
    need_scores, need_values = ctx.needs_input_grad[:2]
    grad_scores, grad_values = torch.ops.d2ops.soft_roi_pool_backward(
        grad_pooled,
        grad_maps if ctx.return_maps else None,
        scores,
        values,
        mask,
        per_map,
        stats,
        ctx.temperature,
        need_scores,
        need_values,
    )
    return grad_scores if need_scores else None, grad_values if need_values else None, None, None, None


if library.available:
    torch.library.register_fake("d2ops::soft_roi_pool")(_fake)
    torch.library.register_fake("d2ops::soft_roi_pool_backward")(_fake_backward)
    torch.library.register_autograd("d2ops::soft_roi_pool", _backward, setup_context=_setup_context)
    library.once_differentiable("soft_roi_pool_backward")
