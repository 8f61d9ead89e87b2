"""Soft RoI pooling in plain PyTorch: the equation, and the path of SHARED_OPS=reference."""

import torch
from torch import Tensor


def soft_roi_pool_reference(
    scores: Tensor, values: Tensor, temperature: float = 1.0, mask: Tensor | None = None, return_maps: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """M = softmax of scores / T over the positions; pooled[n,l,c] = sum over d, p of M[n,l,d,p] * values[n,c,d,p].

    Half types are computed in float32. Arguments and results as `soft_roi_pool`.
    """
    if not temperature > 0:
        raise ValueError(f"soft_roi_pool: temperature is {temperature}; expected a finite number above 0.")
    wide = torch.promote_types(scores.dtype, torch.float32)
    logits = scores.to(wide).flatten(3) / temperature
    if mask is None:
        maps = logits.softmax(-1)
    else:
        outside = ~mask.flatten(1)[:, None, None, :]
        maps = logits.masked_fill(outside, float("-inf")).softmax(-1).masked_fill(outside, 0)
    with torch.autocast(scores.device.type, enabled=False):
        pooled = torch.einsum("nldp,ncdp->nlc", maps, values.to(wide).flatten(3)).to(scores.dtype)
    return (pooled, maps.reshape(scores.shape)) if return_maps else pooled
