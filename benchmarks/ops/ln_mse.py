"""LN-MSE on the two largest levels of a Faster R-CNN at 800 x 1344, two images; the encoder's side needs no gradient.

eager: F.layer_norm of both sides, then F.mse_loss. torch.compile: the same, compiled.
"""

import torch
import torch.nn.functional as F

from benchmarks.ops.harness import Case
from shared.ops.ln_mse import ln_mse


def eager(x, y):
    return F.mse_loss(F.layer_norm(x, x.shape[1:]), F.layer_norm(y, y.shape[1:]))


def cases(device):
    rng = torch.Generator().manual_seed(0)
    result = []
    for level, height, width in (("P2", 200, 336), ("P3", 100, 168)):
        shape = (2, 256, height, width)
        y = torch.randn(shape, generator=rng)
        x = torch.randn(shape, generator=rng).add_(y)  # correlation 0.7: the distance is neither 0 nor 2
        size = 4 * y.numel()
        result.append(
            Case(
                op="ln_mse",
                title=f"{level}, 2 x 256 x {height} x {width}, float32",
                inputs=[x.to(device).requires_grad_(), y.to(device)],
                variants={"eager": eager, "torch.compile": torch.compile(eager, fullgraph=True), "ours": ln_mse},
                bytes_moved=(2 * size, 3 * size),
                target=2.0,
            )
        )
    return result
