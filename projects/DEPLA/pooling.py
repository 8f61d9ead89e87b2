"""Soft RoI pooling on the implementation that is asked for ("Aggregation with Feature Detection", sec. 3.1 and 3.2).

N: images, L: RoI groups, D: maps a group, C: channel groups of the candidate, H x W: cells, P = H W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.ops import soft_roi_pool, soft_roi_pool_reference
from shared.precision import no_autocast

IMPLS = ("auto", "fused", "reference", "sdpa")


def spatial_softmax(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """softmax of logits / temperature over H and W, in float32 or wider.

    logits: (N, ..., H, W); mask: (N, H, W) bool, True where a cell takes part. Others get 0, all cells of an image
    without any as well.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(-2) / temperature
    if mask is None:
        maps = logits.softmax(-1)
    else:
        outside = ~mask.flatten(1).view(len(mask), *[1] * (logits.dim() - 2), -1)
        maps = logits.masked_fill(outside, float("-inf")).softmax(-1).masked_fill(outside, 0)
    return maps


def pool(
    scores: Tensor, values: Tensor, temperature: float, mask: Tensor | None, return_maps: bool, impl: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Z[n,l,c] = sum over d, p of softmax_p(scores[n,l,d,:] / T)[p] * values[n,c,d,p].

    scores: (N, L, D, H, W); values: (N, C, D, H, W); mask: (N, H, W) bool. impl: "auto" and "fused" are the op,
    "reference" its equation in PyTorch, "sdpa" torch's attention with the scores as its additive mask.
    Returns Z (N, L, C) and, with return_maps, the softmax (N, L, D, H, W), float32 where scores are half.
    """
    values = values.to(scores.dtype)
    if impl == "sdpa":
        pooled = _sdpa(scores, values, temperature, mask)
        return (pooled, spatial_softmax(scores, temperature, mask).view(scores.shape)) if return_maps else pooled
    op = soft_roi_pool_reference if impl == "reference" else soft_roi_pool
    return op(scores, values, temperature, mask=mask, return_maps=return_maps)


def _sdpa(scores: Tensor, values: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """Attention with queries and keys of zeros is softmax(additive mask) @ values: N D problems of L rows."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    bias = scores.to(dtype).flatten(3).transpose(1, 2) / temperature  # (N, D, L, P)
    some = None
    if mask is not None:
        outside = ~mask.flatten(1)[:, None, None]
        some = mask.flatten(1).any(1)[:, None, None].to(dtype)  # a row of -inf alone would be NaN
        bias = bias.masked_fill(outside & (some > 0)[:, None], float("-inf"))
    v = values.to(dtype).flatten(3).permute(0, 2, 3, 1)  # (N, D, P, C)
    q, k = v.new_zeros(*bias.shape[:3], v.shape[-1]), torch.zeros_like(v)
    with no_autocast(scores):
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).sum(dim=1)
    return (pooled if some is None else pooled * some).to(scores.dtype)
