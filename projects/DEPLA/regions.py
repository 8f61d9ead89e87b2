"""Where the DEPLA modules of a trained model read and write, for pictures like Figure 8 of the paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .depla import DEPLA
from .pooling import spatial_softmax


@dataclass(frozen=True)
class Regions:
    """One DEPLA module on one image, float32.

    x: (C1, H, W), before; y: (C2, H', W'), the candidate; scores, maps: (L, D, H, W), S and M; heat: (L, H, W), B;
    strength: (L,), norm of tau(Z) of each group; update, out: (C1, H, W), what is added, the module's output.
    """

    x: Tensor
    y: Tensor
    scores: Tensor
    maps: Tensor
    heat: Tensor
    strength: Tensor
    update: Tensor
    out: Tensor

    def groups(self, number: int) -> list[int]:
        """The groups that write most, by strength."""
        return self.strength.topk(min(number, len(self.strength))).indices.tolist()


def effective_area(maps: Tensor) -> Tensor:
    """(sum m)^2 / (P sum m^2) of maps (..., H, W), not negative: 1 for a uniform map, 1 / P for a single cell."""
    return maps.sum(dim=(-2, -1)).square() / (maps.square().sum(dim=(-2, -1)) * maps.shape[-2] * maps.shape[-1])


def sharpened(scores: Tensor, temperature: float) -> Tensor:
    """M of the same scores (..., H, W) at another temperature."""
    return spatial_softmax(scores[None], temperature).view(scores.shape)


@contextmanager
def recorded_regions(model: nn.Module) -> Iterator[dict[str, Regions]]:
    """Fills the dict with the `Regions` of every DEPLA of `model`, by module name, when the model runs one image.

    They are computed once more, beside the run: its results are what they are without.
    """
    found: dict[str, Regions] = {}

    def record(name: str):
        @torch.no_grad()
        def hook(depla: DEPLA, inputs: tuple, output: Tensor) -> None:
            x, y = inputs
            t = depla.trace(x, y, with_maps=True)
            strength = t.transformed[0].norm(dim=1)
            parts = (x[0], y[0], t.scores[0], t.maps[0], t.heat[0], strength, t.update[0], t.out[0])
            found[name] = Regions(*(p.float().cpu() for p in parts))

        return hook

    sites = {name: m for name, m in model.named_modules() if isinstance(m, DEPLA)}
    handles = [depla.register_forward_hook(record(name)) for name, depla in sites.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
