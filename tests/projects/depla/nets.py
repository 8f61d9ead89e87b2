"""Small DEPLA modules, inputs and batches for the tests; no two sizes are equal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.DEPLA.depla import DEPLA, DEPLASpec

L, C, D = 3, 5, 2  # RoI groups, channel groups, maps a group
X, Y = 7, 4  # channels
SIZE = (6, 8)
SMALL = {"num_groups": L, "mid_channels": C, "maps_per_group": D, "zero_init": False}


def make_depla(x_channels=X, y_channels=Y, seed=0, **spec) -> DEPLA:
    """In float64, with scores that differ between cells (std about 1)."""
    torch.manual_seed(seed)
    depla = DEPLA(x_channels, y_channels, spec=DEPLASpec(**{**SMALL, **spec}))
    torch.nn.init.normal_(depla.soft_rpn.conv.weight, std=0.5)
    return depla.double()


def make_inputs(x_size=SIZE, y_size=SIZE, n=2, x_channels=X, y_channels=Y, seed=1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n, channels, *size, generator=rng, dtype=torch.float64)
        for channels, size in ((x_channels, x_size), (y_channels, y_size))
    )


def by_hand(depla: DEPLA, x: Tensor, y: Tensor) -> Tensor:
    """The equations of sec. 3 an image and a group at a time, as matrices over the P cells; equal sizes."""
    spec = depla.spec
    relative = {"peak": lambda m: m / m.max(-1, True).values, "area": lambda m: m * m.shape[-1], "none": lambda m: m}
    relative = relative[spec.map_scale]
    weight = {name: p.flatten(1) for name, p in depla.named_parameters()}
    outs = []
    for xi, yi in zip(x.flatten(2), y.flatten(2)):
        cells = xi.shape[1]
        scores = weight["soft_rpn.conv.weight"] @ xi
        maps = torch.stack([F.softmax(row / spec.temperature, dim=0) for row in scores])
        values = weight["transform.weight"] @ yi
        filled = torch.zeros(spec.mid_channels, cells, dtype=x.dtype)
        for group in range(spec.num_groups):
            pooled = torch.zeros(spec.mid_channels, dtype=x.dtype)
            for d in range(spec.maps_per_group):
                for c in range(spec.mid_channels):
                    product = maps[group * spec.maps_per_group + d] * values[c * spec.maps_per_group + d]
                    pooled[c] += product.sum()
            if spec.back_filling == "plain":
                logits = weight["bfn.heat.weight"][group] @ relative(maps)
            else:
                logits = (weight["bfn.psi.weight"] @ pooled) @ (weight["bfn.phi.weight"] @ xi)
            filled += torch.outer(weight["tau.weight"] @ pooled, relative(F.softmax(logits, dim=0)))
        outs.append(xi + weight["refine.weight"] @ filled + (yi if spec.keep_sum else 0))
    return torch.stack(outs).view(x.shape)


def images(n=2, height=64, width=96, seed=0) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))
