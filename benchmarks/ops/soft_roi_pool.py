"""soft_roi_pool at the sizes of FPN-DEPLA (800 x 1333: P2, P3, P4) and of res4 at 224 x 224.

- eager: the reference, softmax and einsum
- torch.compile: the same, compiled
- softmax + bmm: softmax, then one matrix product an (image, map), summed over the maps
- sdpa: scaled_dot_product_attention with zero queries and keys and the scores as additive mask
- ours: the native op
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.ops.soft_roi_pool import soft_roi_pool, soft_roi_pool_reference

from .harness import Case

GROUPS, CHANNELS, MAPS, TEMPERATURE = 16, 16, 4, 0.5
PLACES = [  # name, H, W, N on the CPU, N on CUDA, target
    ("P2", 200, 334, 1, 16, 3.0),
    ("P3", 100, 167, 2, 16, None),
    ("P4", 50, 84, 2, 16, None),
    ("res4", 14, 14, 32, 256, None),
]


def softmax_bmm(scores: Tensor, values: Tensor) -> Tensor:
    maps = (scores.flatten(3) / TEMPERATURE).softmax(-1)
    return torch.matmul(maps.transpose(1, 2), values.flatten(3).permute(0, 2, 3, 1)).sum(1)


def sdpa(scores: Tensor, values: Tensor) -> Tensor:
    v = values.flatten(3).permute(0, 2, 3, 1)  # N, D, P, C'
    bias = (scores.flatten(3) / TEMPERATURE).transpose(1, 2)  # N, D, L, P
    query = v.new_zeros(1, 1, 1, 1).expand(*bias.shape[:3], v.shape[-1])
    key = v.new_zeros(1, 1, 1, 1).expand(v.shape)
    return F.scaled_dot_product_attention(query, key, v, attn_mask=bias).sum(1)


def cases(device: torch.device) -> list[Case]:
    eager = functools.partial(soft_roi_pool_reference, temperature=TEMPERATURE)
    variants = {
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        "softmax + bmm": softmax_bmm,
        "sdpa": sdpa,
        "ours": functools.partial(soft_roi_pool, temperature=TEMPERATURE),
    }
    dtypes = [torch.float32] if device.type == "cpu" else [torch.float32, torch.bfloat16]
    found = []
    for name, height, width, on_cpu, on_cuda, target in PLACES:
        n = on_cpu if device.type == "cpu" else on_cuda
        for dtype in dtypes:
            rng = torch.Generator().manual_seed(0)
            inputs = [
                torch.randn(n, size, MAPS, height, width, generator=rng).to(device, dtype).requires_grad_()
                for size in (GROUPS, CHANNELS)
            ]
            moved = sum(x.numel() * x.element_size() for x in inputs)
            title = f"{name}, scores {list(inputs[0].shape)}, values {list(inputs[1].shape)}, {dtype}"
            tolerance = 1e-4 if dtype == torch.float32 else 2e-2
            found.append(Case("soft_roi_pool", title, inputs, variants, (moved, 2 * moved), tolerance, target=target))
    return found
