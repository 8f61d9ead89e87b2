"""Make-up and critic units ("Feature Intertwiner for Object Detection", ICLR 2019, arXiv:1903.11851, Sec. 3.1,
Tables 6 and 7). R: RoIs of the whole batch, C: channels, S x S: pooled size, D: width of the critic's output."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detectron2.layers import Conv2d, NaiveSyncBatchNorm, get_norm
from detectron2.utils import comm

NORMS = ("", "BN", "SyncBN", "GN", "affine")
VARIANTS = ("paper", "light")
ACTIVATIONS = {"sigmoid": torch.sigmoid, "softmax": lambda x: torch.softmax(x, dim=1)}


class ChannelAffine(nn.Module):
    """y = x * weight + bias per channel: what a batch norm is that stays in eval mode for ever, as in the authors'
    code (there also divided by sqrt(1 + 1e-5))."""

    def __init__(self, num_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def norm_of(name: str) -> str | Callable[[int], nn.Module]:
    """The `norm` of InterNet's configs as Detectron2's `get_norm` takes it.

    "SyncBN" is the one that weights each worker by its RoIs and bears a worker without any.
    """
    if name not in NORMS:
        raise ValueError(f"norm (MODEL.INTERNET.NORM) is {name!r}, choose one of {', '.join(map(repr, NORMS))}.")
    return {"affine": ChannelAffine, "SyncBN": "naiveSyncBN_N"}.get(name, name)


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Within, the module's batch norms use their running statistics, and leave them as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _run_on_rows(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`; with fewer than two rows their batch norms use running statistics, as one row has no variance.
    Norms synchronised over workers stay as they are: all workers must take part."""
    synced = comm.get_world_size() > 1 and any(isinstance(m, NaiveSyncBatchNorm) for m in layers.modules())
    if len(x) >= 2 or synced:
        return layers(x)
    with running_statistics(layers):
        return layers(x)


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str, **kwargs) -> Conv2d:
    """Convolution with bias (Tables 6 and 7), norm, ReLU."""
    layer = Conv2d(
        in_channels, out_channels, kernel_size, norm=get_norm(norm_of(norm), out_channels), activation=F.relu, **kwargs
    )
    weight_init.c2_msra_fill(layer)
    return layer


class MakeUp(nn.Module):
    """Table 6: 3x3 convolution, norm, ReLU; size and channels stay. Not residual.

    One unit for all levels, as the paper's count of "three" convolutions has it, or one per level.
    """

    def __init__(self, *, channels: int, norm: str = "BN", num_units: int = 1):
        """num_units: 1, or the number of levels."""
        super().__init__()
        self.units = nn.ModuleList(_conv(channels, channels, 3, norm, padding=1) for _ in range(num_units))

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        """RoI features (R, C, S, S) and the index of each RoI's level (R,) -> (R, C, S, S); R may be 0."""
        if len(self.units) == 1:
            return _run_on_rows(self.units[0], x)
        parts = [levels == level for level in range(len(self.units))]
        results = [_run_on_rows(unit, x[part]) for unit, part in zip(self.units, parts)]
        output = results[0].new_zeros(x.shape)
        for part, result in zip(parts, results):
            output.index_put_((part,), result.to(output.dtype))
        return output

    def forward_maps(self, maps: list[Tensor]) -> list[Tensor]:
        """The unit on whole maps (N, C, H_l, W_l) before pooling, as in the authors' code: its cost then depends on the
        image alone, not on the number of RoIs."""
        units = self.units if len(self.units) > 1 else [self.units[0]] * len(maps)
        return [unit(x) for unit, x in zip(units, maps)]


class Critic(nn.Module):
    """Table 7: 3x3 convolution to `hidden` channels, convolution over all cells that are left, sigmoid.

    Each convolution is followed by norm and ReLU, so the result lies in [0.5, 1). Shared by small and large objects and
    by all levels.

    variant     14 x 14 RoIs               7 x 7 RoIs
    "paper"     stride 2, then 7x7         stride 1, then 7x7: the same layers
    "light"     stride 2, then 7x7         stride 2, then 4x4: about a third of the parameters and operations

    The paper has 14 x 14 alone.
    """

    def __init__(
        self,
        *,
        channels: int,
        roi_size: int = 14,
        hidden: int = 512,
        dim: int = 1024,
        norm: str = "BN",
        variant: str = "paper",
        activation: str = "sigmoid",
        extra_1x1: bool = False,
    ):
        """roi_size: S. activation: "softmax" makes a distribution of the D values, for the KL loss.
        extra_1x1: a third convolution, D to D, as in the authors' code."""
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"Critic: variant is {variant!r}, choose one of {', '.join(VARIANTS)}.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"Critic: activation is {activation!r}, choose one of {', '.join(ACTIVATIONS)}.")
        self.dim, self.activation = dim, activation
        stride = 1 if variant == "paper" and roi_size % 2 else 2
        layers = [
            _conv(channels, hidden, 3, norm, stride=stride, padding=1),
            _conv(hidden, dim, math.ceil(roi_size / stride), norm),
        ]
        if extra_1x1:
            layers.append(_conv(dim, dim, 1, norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """RoI features (R, C, S, S) -> (R, D), float32; R may be 0."""
        x = _run_on_rows(self.layers, x).flatten(1)
        return ACTIVATIONS[self.activation](x.float())  # bfloat16 has 64 steps between 0.5 and 1

    def with_running_statistics(self, x: Tensor) -> Tensor:
        """`forward` as at inference, for the large objects: often none or one, and of other statistics."""
        with running_statistics(self):
            return self(x)
