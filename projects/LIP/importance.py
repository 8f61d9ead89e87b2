"""What the poolings of a trained model weigh: importance maps, and what is left of a small object.

C: channels, H x W: cells of a map before its pooling.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pooling import LIPPool2d


@dataclass(frozen=True)
class Site:
    """One pooling of one image. x: (C, H, W), what is pooled; logits: (C, H, W); poolings: by name, (C, H', W')."""

    x: Tensor
    logits: Tensor
    poolings: dict[str, Tensor]

    def importance(self) -> Tensor:
        """Mean over the channels of exp(logits), each channel's taken relative to its own mean: (H, W), about 1."""
        weights = (self.logits - self.logits.amax(dim=(1, 2), keepdim=True)).exp()
        return (weights / weights.mean(dim=(1, 2), keepdim=True)).mean(dim=0)


@contextmanager
def recorded_sites(model: nn.Module) -> Iterator[dict[str, Site]]:
    """Fills the dict with the `Site` of every LIPPool2d of `model`, by module name, when the model runs one image.

    Max and average pooling of the same input have the site's own window; average pooling counts valid positions.
    """
    sites: dict[str, Site] = {}

    def record(name: str):
        @torch.no_grad()
        def hook(pool: LIPPool2d, inputs: tuple, output: Tensor) -> None:
            x, window = inputs[0], (pool.kernel_size, pool.stride, pool.padding)
            poolings = {
                "max": F.max_pool2d(x, *window),
                "average": F.avg_pool2d(x, *window, count_include_pad=False),
                "LIP": output,
            }
            logits = pool.logits(*inputs)
            sites[name] = Site(x[0].float(), logits[0].float(), {k: v[0].float() for k, v in poolings.items()})

        return hook

    pools = {name: m for name, m in model.named_modules() if isinstance(m, LIPPool2d)}
    handles = [pool.register_forward_hook(record(name)) for name, pool in pools.items()]
    try:
        yield sites
    finally:
        for handle in handles:
            handle.remove()


def energy(x: Tensor) -> Tensor:
    """Mean absolute value over the channels: (C, H, W) -> (H, W)."""
    return x.abs().mean(dim=0)


def contrast(values: Tensor, box: tuple[float, float, float, float]) -> float:
    """Mean of a map inside a box over its mean outside.

    values: (H, W), not negative. box: (x0, y0, x1, y1) as shares of the map's sides, in [0, 1]; a cell belongs to it
    by the share of its area that the box covers, so that maps of different sizes are compared on the same box.
    """
    h, w = values.shape
    inside = torch.outer(_coverage(h, box[1], box[3]), _coverage(w, box[0], box[2])).to(values)
    outside = 1 - inside
    return float(((values * inside).sum() / inside.sum()) / ((values * outside).sum() / outside.sum()))


def _coverage(cells: int, start: float, end: float) -> Tensor:
    """Share of each of `cells` equal parts of [0, 1] that lies between start and end."""
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)).clamp(min=0) * cells
