"""DEPLA: aggregation with feature detection (Sun et al., ICCV 2021, sec. 3).

Shapes: X (N, C1, H, W), the identity feature; Y (N, C2, H', W'), the candidate; L RoI groups of D maps; C' channel
groups of the transformed candidate; P = H W.

    S = conv(X)                                   (N, L, D, H, W)   SoftRPN: where to look
    M = softmax over p of S / T                   (N, L, D, H, W)   Eq. (1), RoI maps
    Z[l,c] = sum_dp M[l,d,p] conv(Y)[c,d,p]       (N, L, C')        soft RoI pooling
    B = softmax over p of heat(M) or <phi(X), psi(Z)>   (N, L, H, W)   back-filling heat maps, plain or adaptive
    R[c,p] = sum_l B[l,p] tau(Z)[l,c]             (N, C', H, W)     back-filling
    out = X + conv(R)                             (N, C1, H, W)

All convolutions are 1x1. None has a bias: before a softmax it has no effect. Channel order: l * D + d and c * D + d.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import Conv2d, get_norm
from shared.precision import no_autocast

from .padding import cell_mask, extend_border
from .pooling import IMPLS, pool, spatial_softmax

BACK_FILLINGS = ("plain", "adaptive")
MAP_SCALES = ("peak", "area", "none")


@dataclass(frozen=True)
class DEPLASpec:
    """What stands at the aggregation sites; the defaults are those of the paper's ResNets.

    num_groups: L. mid_channels: C'. maps_per_group: D. temperature: T of Eq. (1).
    back_filling: one of BACK_FILLINGS.
    map_scale: of M before the plain heat maps' convolution, and of B, which sum to 1 over the cells. "none": as they
        are, the paper's text; the module's output and gradients then shrink as 1 / P. "area": times P, mean 1: at one
        size the same model with another scale of two weights, but a map that concentrates in a cell is P there, and
        training can diverge. "peak": over their largest value, at most 1; uniform maps are 1 everywhere, as in "area".
    keep_sum: out = X + Y + conv(R), the sum of the host kept; False, the paper's text: Y enters through Z alone.
    norm: of the last convolution, "" none.
    zero_init: the last convolution (the norm's scale, with one) starts at 0, and out = X (+ Y).
    impl: of the soft RoI pooling, see `projects.DEPLA.pooling.pool`.
    mask_padding: padded cells take no part; the model must be a `PaddingMaskRCNN`.
    """

    num_groups: int = 16
    mid_channels: int = 16
    maps_per_group: int = 4
    temperature: float = 1.0
    back_filling: str = "plain"
    map_scale: str = "peak"
    keep_sum: bool = False
    norm: str = ""
    zero_init: bool = True
    impl: str = "auto"
    mask_padding: bool = False

    def __post_init__(self):
        for name in ("num_groups", "mid_channels", "maps_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"DEPLA: {name} must be at least 1, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"DEPLA: temperature must be above 0, got {self.temperature}.")
        for name, known in (("back_filling", BACK_FILLINGS), ("map_scale", MAP_SCALES), ("impl", IMPLS)):
            if getattr(self, name) not in known:
                raise ValueError(f"DEPLA: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    def __call__(self, x_channels: int, y_channels: int) -> "DEPLA":
        """The module for one site: what `shared.modeling.fishnet` wants."""
        return DEPLA(x_channels, y_channels, spec=self)


@dataclass(frozen=True)
class Trace:
    """What one run of a `DEPLA` computed; shapes in the module's docstring. maps: None where nothing reads M."""

    scores: Tensor
    maps: Tensor | None
    pooled: Tensor
    heat: Tensor
    transformed: Tensor  # tau(Z): (N, L, C')
    update: Tensor  # conv(R): (N, C1, H, W)
    out: Tensor


def _conv(in_channels: int, out_channels: int, fill: Callable, norm: str = "") -> Conv2d:
    conv = Conv2d(in_channels, out_channels, 1, bias=False, norm=get_norm(norm, out_channels))
    fill(conv)
    return conv


def _normal_fill(conv: nn.Module) -> None:
    nn.init.normal_(conv.weight, std=0.01)  # maps start almost uniform


class SoftRPN(nn.Module):
    """Scores of L groups of D RoI maps (sec. 3.1). Y plays no part in where to look."""

    def __init__(self, channels: int, num_groups: int, maps_per_group: int):
        super().__init__()
        self.groups = (num_groups, maps_per_group)
        self.conv = _conv(channels, num_groups * maps_per_group, _normal_fill)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C1, H, W) -> (N, L, D, H, W)."""
        return self.conv(x).unflatten(1, self.groups)


class PlainBFN(nn.Module):
    """Heat logits by a convolution of the RoI maps (sec. 3.3, top of Figure 4)."""

    needs_maps = True

    def __init__(self, spec: DEPLASpec, x_channels: int, fill: Callable):
        super().__init__()
        self.map_scale = spec.map_scale
        self.heat = _conv(spec.num_groups * spec.maps_per_group, spec.num_groups, fill)

    def forward(self, x: Tensor, maps: Tensor, pooled: Tensor, area: Tensor) -> Tensor:
        """maps: (N, L, D, H, W); area: (N,), cells that take part. Returns (N, L, H, W)."""
        if self.map_scale != "none":
            return self.heat(_scaled(maps, self.map_scale, area).flatten(1, 2))
        logits = self.heat(_scaled(maps, "area", area).flatten(1, 2))  # maps of 1 / P would vanish in float16
        return logits.to(maps.dtype) / area.view(-1, 1, 1, 1).to(maps)


class AdaptiveBFN(nn.Module):
    """Heat logits by the affinity of X and Z in a space of C' channels (sec. 3.3, bottom of Figure 4)."""

    needs_maps = False

    def __init__(self, spec: DEPLASpec, x_channels: int, fill: Callable):
        super().__init__()
        self.phi = _conv(x_channels, spec.mid_channels, fill)
        self.psi = _conv(spec.mid_channels, spec.mid_channels, fill)

    def forward(self, x: Tensor, maps: None, pooled: Tensor, area: Tensor) -> Tensor:
        """x: (N, C1, H, W); pooled: (N, L, C'). Returns (N, L, H, W)."""
        groups, cells = on_groups(self.psi, pooled), self.phi(x)
        with no_autocast(x):  # the softmax turns the logits' errors into relative ones
            return torch.einsum(
                "nlc,nchw->nlhw", *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in (groups, cells))
            )


def on_groups(conv: nn.Module, pooled: Tensor) -> Tensor:
    """A 1x1 convolution over the channels of each group's vector: (N, L, C') -> (N, L, C')."""
    return conv(pooled.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)


class DEPLA(nn.Module):
    """Adds to X what its RoIs select from Y. See the module's docstring."""

    def __init__(
        self,
        x_channels: int,
        y_channels: int,
        *,
        spec: DEPLASpec = DEPLASpec(),
        fill: Callable[[nn.Module], None] = weight_init.c2_msra_fill,
    ):
        """fill: of all weights but SoftRPN's and, with spec.zero_init, the last convolution's."""
        super().__init__()
        if spec.keep_sum and x_channels != y_channels:
            raise ValueError(
                f"DEPLA: keep_sum adds Y to X, which have {y_channels} and {x_channels} channels here: set it to False."
            )
        self.spec = spec
        self.soft_rpn = SoftRPN(x_channels, spec.num_groups, spec.maps_per_group)
        self.transform = _conv(y_channels, spec.mid_channels * spec.maps_per_group, fill)
        bfn = PlainBFN if spec.back_filling == "plain" else AdaptiveBFN
        self.bfn = bfn(spec, x_channels, fill)
        self.tau = _conv(spec.mid_channels, spec.mid_channels, fill)
        self.refine = _conv(spec.mid_channels, x_channels, fill, spec.norm)
        if spec.zero_init:
            nn.init.zeros_(self.refine.weight if self.refine.norm is None else self.refine.norm.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (N, C1, H, W); y: (N, C2, H', W'). Returns (N, C1, max(H, H'), max(W, W')): the smaller is resized."""
        return self.trace(x, y).out

    def trace(self, x: Tensor, y: Tensor, with_maps: bool = False) -> Trace:
        """The same, with what lies between; with_maps: M also where nothing reads it, in the adaptive form."""
        values = self.transform(y)
        x, values, mask, area = self._align(x, values)
        scores = self.soft_rpn(x)
        values = values.unflatten(1, (self.spec.mid_channels, self.spec.maps_per_group))
        maps, needs_maps = None, with_maps or self.bfn.needs_maps
        pooled = pool(scores, values, self.spec.temperature, mask, needs_maps, self.spec.impl)
        if needs_maps:
            pooled, maps = pooled
        heat = self._heat(self.bfn(x, maps, pooled, area), mask)
        transformed = on_groups(self.tau, pooled)
        update = self._fill_back(heat, transformed, area)
        return Trace(scores, maps, pooled, heat, transformed, update, self._merge(x, y, update))

    def _align(self, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """X and the transformed Y at the larger of their sizes, valid cells (N, H, W) or None, their number (N,).

        Y is transformed before: the two commute, and at the smaller size the convolution costs less.
        """
        size = tuple(max(a, b) for a, b in zip(x.shape[-2:], values.shape[-2:]))
        if self.spec.mask_padding:
            x, values = (m if tuple(m.shape[-2:]) == size else _resize(extend_border(m), size) for m in (x, values))
            mask = cell_mask(x)
            return x, values, mask, mask.flatten(1).sum(dim=1)
        x, values = _resize(x, size), _resize(values, size)
        return x, values, None, torch.full((len(x),), size[0] * size[1], device=x.device)

    @staticmethod
    def _heat(logits: Tensor, mask: Tensor | None) -> Tensor:
        return spatial_softmax(logits, 1.0, mask).view(logits.shape)

    def _fill_back(self, heat: Tensor, transformed: Tensor, area: Tensor) -> Tensor:
        """conv(R): (N, C1, H, W). Sums in float32; unscaled, R is too small for float16."""
        with no_autocast(heat):
            heat = _scaled(heat, self.spec.map_scale, area)
            filled = torch.einsum("nlhw,nlc->nchw", heat, transformed.to(heat.dtype))
            if self.spec.map_scale == "none":
                return self.refine(filled.to(self.refine.weight.dtype))
        return self.refine(filled.to(transformed.dtype))

    def _merge(self, x: Tensor, y: Tensor, update: Tensor) -> Tensor:
        if self.spec.keep_sum:
            if y.shape[-2:] != x.shape[-2:]:
                y = F.interpolate(y, size=x.shape[-2:], mode="nearest")  # as FPN's own sum
            x = x + y
        return x + update.to(x.dtype)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _scaled(maps: Tensor, scale: str, area: Tensor) -> Tensor:
    """Maps (N, ..., H, W) that sum to 1 over the cells, times what `DEPLASpec.map_scale` says. area: (N,)."""
    if scale == "peak":
        return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    if scale == "area":
        return maps * area.view(-1, *[1] * (maps.dim() - 1)).to(maps)
    return maps
