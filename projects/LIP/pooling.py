"""Local importance-based pooling, and the poolings it is compared with, as modules (arXiv:1908.04156, sec. 3).

All are y_o = sum_i F_i x_i / sum_i F_i over the valid positions i of window o, with another importance F:
1 (average), exp(beta x), beta -> inf (maximum), exp(x) (SoftPool, arXiv:2101.00440), alpha + |x - mean|^lambda
(detail-preserving) and exp(G(x)) with a learned G (LIP).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from shared.ops import lip_pool2d

from .logits import (
    LOGIT_INITS,
    BottleneckHead,
    BottleneckLogit,
    DetailLogit,
    PlainLogit,
    ProjectionLogit,
    SimplifiedLogit,
    start_at_zero,
)

POOLINGS = ("lip", "softpool", "detail", "average", "max")
LOGITS = ("bottleneck", "projection", "simplified", "plain")


@dataclass(frozen=True)
class Pooling:
    """What stands at the pooling sites of a backbone; the defaults are those of the official LIP-ResNet.

    kind: one of POOLINGS. All but "lip" ignore the other values.
    logit: one of LOGITS. "bottleneck" stands for the paper's Bottleneck-`width` setting, which has the simplified
        module at the stem; the others take their logits from the map that is pooled.
    width: channels of a bottleneck's trunk.
    gate: logits are gate * sigmoid(z), in (0, gate); None leaves z as it is.
    init: see `start_at_zero`.
    """

    kind: str = "lip"
    logit: str = "bottleneck"
    width: int = 128
    gate: float | None = 12.0
    init: str = "zero_conv"

    def __post_init__(self):
        for name, value, known in (
            ("kind", self.kind, POOLINGS),
            ("logit", self.logit, LOGITS),
            ("init", self.init, LOGIT_INITS),
        ):
            if value not in known:
                raise ValueError(f"Pooling: {name} must be one of {', '.join(known)}, got {value!r}.")
        if self.width < 1:
            raise ValueError(f"Pooling: width is the trunk's number of channels, at least 1, got {self.width}.")
        if self.gate is not None and not self.gate > 0:
            raise ValueError(f"Pooling: gate must be positive, or None for logits without a gate, got {self.gate}.")

    @property
    def has_trunk(self) -> bool:
        """Whether the branches of a residual block take their logits from a common trunk."""
        return self.kind == "lip" and self.logit == "bottleneck"


class LIPPool2d(nn.Module):
    """y_o = sum_i exp(l_i) x_i / sum_i exp(l_i) over window o, per channel; l = gate * sigmoid(logit(features))."""

    def __init__(
        self, logit: nn.Module, *, gate: float | None = 12.0, kernel_size: int = 3, stride: int = 2, padding: int = 1
    ):
        """logit: maps features to z of the shape of the map that is pooled; nn.Identity() and no gate: SoftPool."""
        super().__init__()
        self.logit, self.gate = logit, gate
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W); features: (N, any, H, W), what the logits are computed from, default x.

        Returns (N, C, H', W') with H' = floor((H + 2 padding - kernel_size) / stride) + 1, in the dtype of x.
        """
        z = self.logit(x if features is None else features)
        return lip_pool2d(x, z, self.kernel_size, self.stride, self.padding, gate=self.gate)

    def logits(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """l, with the gate: (N, C, H, W)."""
        z = self.logit(x if features is None else features)
        return z if self.gate is None else self.gate * z.sigmoid()

    def extra_repr(self) -> str:
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"gate={self.gate}, {window}"


def make_logit(pooling: Pooling, channels: int) -> nn.Module:
    """A logit module of `pooling` on the map that is pooled, with everything that it needs."""
    if pooling.logit == "bottleneck":
        return BottleneckLogit(channels, pooling.width)
    return {"projection": ProjectionLogit, "simplified": SimplifiedLogit, "plain": PlainLogit}[pooling.logit](channels)


def make_pool(
    pooling: Pooling, channels: int, *, logit: nn.Module | None = None, kernel_size: int = 3, padding: int = 1
) -> nn.Module:
    """The module for one site with stride 2. logit: LIP's, where it is not `make_logit(pooling, channels)`.

    Average pooling divides by the number of valid positions, as LIP does with constant logits.
    """
    window = {"kernel_size": kernel_size, "stride": 2, "padding": padding}
    if pooling.kind == "average":
        return nn.AvgPool2d(**window, count_include_pad=False)
    if pooling.kind == "max":
        return nn.MaxPool2d(**window)
    if pooling.kind == "softpool":
        return LIPPool2d(nn.Identity(), gate=None, **window)
    if pooling.kind == "detail":
        return LIPPool2d(DetailLogit(channels), gate=None, **window)
    logit = logit or make_logit(pooling, channels)
    start_at_zero(logit, pooling.init)
    return LIPPool2d(logit, gate=pooling.gate, **window)


def make_stem_pool(pooling: Pooling, channels: int) -> nn.Module:
    """The module in place of the stem's max pooling, 3/2/1."""
    simplified = SimplifiedLogit(channels) if pooling.has_trunk else None
    return make_pool(pooling, channels, logit=simplified)


def make_branch_pool(pooling: Pooling, channels: int) -> nn.Module:
    """The module for one branch of a residual block, 3/2/1. With `pooling.has_trunk` it wants the trunk's features."""
    head = BottleneckHead(pooling.width, channels) if pooling.has_trunk else None
    return make_pool(pooling, channels, logit=head)
