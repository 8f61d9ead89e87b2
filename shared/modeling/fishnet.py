"""FishNet (arXiv:1901.03495): tail, body and head, with features of all depths kept by concatenation.

Pre-activation throughout: a block ends with a convolution, the next begins with its norm. c is `width`, 64 in the
paper; UR: up-sampling and refinement, DR: down-sampling and refinement. One row a part; f0 is the stem.

    f1  tail 1  c @ 4     ->  2c, pooled                                     2c @ 8
    f2  tail 2  2c @ 8    ->  4c, pooled                                     4c @ 16
    f3  tail 3  4c @ 16   ->  8c, pooled                                     8c @ 32
    f4  bridge  8c @ 32   ->  8c, scaled by a gate                           8c @ 32
    f5  UR 1    8c @ 32   ->  8c, up-sampled     + branch of f2 (4c)         12c @ 16
    f6  UR 2    12c @ 16  ->  6c, up-sampled     + branch of f1 (2c)         8c @ 8
    f7  UR 3    8c @ 8    ->  4c, up-sampled     + branch of f0 (c)          5c @ 4
    f8  DR 1    5c @ 4    ->  5c, pooled         + branch of f6 (8c)         13c @ 8
    f9  DR 2    13c @ 8   ->  13c, pooled        + branch of f5 (12c)        25c @ 16
    f10 DR 3    25c @ 16  ->  25c, pooled        + branch of f4 (8c)         33c @ 32
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone import Backbone

FEATURES = ("fish2", "fish3", "fish4", "fish5")  # strides 4, 8, 16, 32
TAPS = ("refined", "concat")
Aggregation = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Depth:
    """Numbers of residual blocks: of tail (3), bridge, body (3), head (3), and of the branches of f5 to f10."""

    tail: tuple[int, int, int]
    bridge: int
    body: tuple[int, int, int]
    head: tuple[int, int, int]
    branches: tuple[int, int, int, int, int, int]


DEPTHS = {
    99: Depth((2, 2, 6), 2, (1, 1, 1), (1, 2, 2), (1, 1, 1, 1, 1, 4)),
    150: Depth((2, 4, 8), 4, (2, 2, 2), (2, 2, 4), (2, 2, 2, 2, 2, 4)),
    201: Depth((3, 4, 12), 4, (2, 2, 2), (2, 3, 10), (2, 2, 2, 2, 2, 9)),
}


class NormReLUConv(nn.Module):
    """norm, ReLU and a convolution that keeps the size."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm: str, *, dilation: int = 1, bias: bool = False
    ):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.norm = get_norm(norm, in_channels)
        self.conv = Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias)
        weight_init.c2_msra_fill(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu_(self.norm(x)))


class FishBlock(nn.Module):
    """Pre-activation bottleneck: 1x1, 3x3, 1x1, plus the input itself, its 1x1 projection or its group sum."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, *, dilation: int = 1, group_sum: bool = False):
        """group_sum: the shortcut adds up runs of in_channels / out_channels adjacent channels, without weights."""
        super().__init__()
        self.group_sum, self.out_channels = group_sum, out_channels
        width = out_channels // 4
        self.conv1 = NormReLUConv(in_channels, width, 1, norm)
        self.conv2 = NormReLUConv(width, width, 3, norm, dilation=dilation)
        self.conv3 = NormReLUConv(width, out_channels, 1, norm)
        self.shortcut = None
        if in_channels != out_channels and not group_sum:
            self.shortcut = NormReLUConv(in_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        out = self.conv3(self.conv2(self.conv1(x)))
        if self.group_sum:
            return out + x.unflatten(1, (self.out_channels, -1)).sum(dim=2)
        return out + (x if self.shortcut is None else self.shortcut(x))


def _blocks(number: int, in_channels: int, out_channels: int, norm: str, **first) -> nn.Sequential:
    """first: of the first block; its dilation holds for all."""
    dilation = {"dilation": first.get("dilation", 1)}
    rest = [FishBlock(out_channels, out_channels, norm, **dilation) for _ in range(number - 1)]
    return nn.Sequential(FishBlock(in_channels, out_channels, norm, **first), *rest)


class FishStem(CNNBlockBase):
    """Three 3x3 convolutions, the first of stride 2, and max pooling: stride 4."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, out_channels, 4)
        widths = (in_channels, out_channels // 2, out_channels // 2, out_channels)
        for i in range(3):
            conv = Conv2d(
                widths[i],
                widths[i + 1],
                3,
                stride=2 if i == 0 else 1,
                padding=1,
                bias=False,
                norm=get_norm(norm, widths[i + 1]),
                activation=F.relu_,
            )
            weight_init.c2_msra_fill(conv)
            self.add_module(f"conv{i + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, out_channels, H / 4, W / 4)."""
        return F.max_pool2d(self.conv3(self.conv2(self.conv1(x))), 3, stride=2, padding=1)


class FishTail(CNNBlockBase):
    """Blocks and max pooling."""

    def __init__(self, number: int, in_channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, out_channels, 2)
        self.blocks = _blocks(number, in_channels, out_channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.blocks(x), 2)


class FishBridge(CNNBlockBase):
    """f4 = a (1 + blocks(s)): s has twice the channels of f3, the gate a in (0, 1) comes from its mean."""

    def __init__(self, number: int, channels: int, norm: str):
        super().__init__(channels, channels, 1)
        self.score1 = NormReLUConv(channels, channels // 2, 1, norm)
        self.score2 = NormReLUConv(channels // 2, 2 * channels, 1, norm, bias=True)
        self.gate_norm = get_norm(norm, 2 * channels)
        self.gate1 = Conv2d(2 * channels, channels // 16, 1)
        self.gate2 = Conv2d(channels // 16, channels, 1)
        for conv in (self.gate1, self.gate2):
            weight_init.c2_msra_fill(conv)
        self.blocks = _blocks(number, 2 * channels, channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        score = self.score2(self.score1(x))
        gate = F.relu_(self.gate_norm(score)).mean(dim=(2, 3), keepdim=True)
        gate = self.gate2(F.relu_(self.gate1(gate))).sigmoid()
        return self.blocks(score) * gate + gate


class FishUnit(CNNBlockBase):
    """A UR or DR block: the trunk's blocks and its sampling, beside the branch's blocks, concatenated.

    `aggregate`, if any, replaces the trunk by aggregate(trunk, branch), of the trunk's shape.
    """

    def __init__(
        self,
        number: int,
        branch_number: int,
        in_channels: int,
        trunk_channels: int,
        branch_channels: int,
        norm: str,
        *,
        up: bool,
        dilation: int = 1,
        aggregate: nn.Module | None = None,
    ):
        super().__init__(in_channels, trunk_channels + branch_channels, 1 if up else 2)
        self.up = up
        self.blocks = _blocks(number, in_channels, trunk_channels, norm, dilation=dilation, group_sum=up)
        self.branch = _blocks(branch_number, branch_channels, branch_channels, norm)
        self.aggregate = aggregate

    def forward(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, in_channels, H, W); source: the branch's input, at the size after sampling.

        Returns (concatenation at the size after sampling, the trunk's blocks' output at the size of x).
        """
        refined = self.blocks(x)
        trunk = F.interpolate(refined, scale_factor=2.0, mode="nearest") if self.up else F.max_pool2d(refined, 2)
        branch = self.branch(source)
        if self.aggregate is not None:
            trunk = self.aggregate(trunk, branch)
        return torch.cat([trunk, branch], dim=1), refined


class FishNet(Backbone):
    """FishNet-99, -150 or -201. Sides of images must be divisible by 32."""

    def __init__(
        self,
        depth: int = 150,
        *,
        in_channels: int = 3,
        width: int = 64,
        norm: str = "BN",
        aggregation: Aggregation | None = None,
        tap: str = "refined",
        out_norm_act: bool = True,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ):
        """
        Args:
            width: channels of the stem, a multiple of 8; all others are in proportion.
            aggregation: called with (channels of X, channels of Y) makes the module of a UR or DR block that
                maps X, the trunk after its sampling, and Y, the branch, to a new trunk.
            tap: what the features of strides 4, 8 and 16 are. "refined": f7, f8 and f9 after the head's blocks, before
                pooling; "concat": f7, f8 and f9 themselves. fish5 is f10 in both.
            out_norm_act: features pass a norm and a ReLU of their own, since f7 to f10 are sums without.
            num_classes: adds the classifier, output "linear".
            out_features: among "fish2" to "fish5" (strides 4 to 32), "final" (the classifier's map of 33/2 width
                channels, stride 32) and "linear"; default "linear" with num_classes, else "final".
            freeze_at: 1 = stem, 2 = stem and the first tail, ... 11 = all.
        Raises:
            ValueError: an unknown depth, tap or output, a width that 8 does not divide.
        """
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"FishNet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth}.")
        if tap not in TAPS:
            raise ValueError(f"FishNet: tap must be one of {', '.join(TAPS)}, got {tap!r}.")
        if width % 8:
            raise ValueError(f"FishNet: width must be a multiple of 8, got {width}.")
        known = [*FEATURES, "final"] + (["linear"] if num_classes is not None else [])
        wanted = known[-1:] if out_features is None else list(out_features)
        if not wanted or not set(wanted) <= set(known):
            raise ValueError(f"FishNet: out_features must be among {', '.join(known)}, got {wanted}.")
        self.tap, self.num_classes, self._out_features = tap, num_classes, [f for f in known if f in wanted]
        self._make_parts(DEPTHS[depth], in_channels, width, norm, aggregation)
        self._make_outputs(width, norm, out_norm_act)
        self.freeze(freeze_at)

    def _make_parts(self, depth: Depth, in_channels: int, c: int, norm: str, aggregation: Aggregation | None) -> None:
        self.stem = FishStem(in_channels, c, norm)
        for i, number in enumerate(depth.tail):
            self.add_module(f"tail{i + 1}", FishTail(number, c << i, c << (i + 1), norm))
        self.bridge = FishBridge(depth.bridge, 8 * c, norm)
        # widths in c: input, trunk, branch
        body = ((8, 8, 4), (12, 6, 2), (8, 4, 1))
        head = ((5, 5, 8), (13, 13, 12), (25, 25, 8))
        for part, numbers, branches, rows in (
            ("body", depth.body, depth.branches[:3], body),
            ("head", depth.head, depth.branches[3:], head),
        ):
            up = part == "body"
            for i, (number, branch_number, (ins, trunk, branch)) in enumerate(zip(numbers, branches, rows)):
                aggregate = None if aggregation is None else aggregation(trunk * c, branch * c)
                sizes = (number, branch_number, ins * c, trunk * c, branch * c)
                unit = FishUnit(*sizes, norm, up=up, dilation=2**i if up else 1, aggregate=aggregate)
                self.add_module(f"{part}{i + 1}", unit)

    def _make_outputs(self, c: int, norm: str, out_norm_act: bool) -> None:
        channels = dict(zip(FEATURES, (5 * c, 13 * c, 25 * c, 33 * c)))
        self._out_feature_channels = {**channels, "final": 33 * c // 2}
        self._out_feature_strides = {"fish2": 4, "fish3": 8, "fish4": 16, "fish5": 32, "final": 32}
        classifies = self.num_classes is not None or "final" in self._out_features
        # fish5's norm is the classifier's first: its weights suit both forms
        normed = {f for f in FEATURES if out_norm_act and f in self._out_features} | (
            {"fish5"} if classifies else set()
        )
        self.out_norms = nn.ModuleDict({f: get_norm(norm, channels[f]) for f in FEATURES if f in normed})
        self.out_norm_act = out_norm_act
        self.final = None
        if classifies:
            self.final = nn.Sequential()
            self.final.add_module("conv", Conv2d(33 * c, 33 * c // 2, 1, bias=False))
            self.final.add_module("norm", get_norm(norm, 33 * c // 2))
            weight_init.c2_msra_fill(self.final.conv)
        if self.num_classes is not None:
            self.linear = nn.Linear(33 * c // 2, self.num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
            self._out_feature_channels["linear"], self._out_feature_strides["linear"] = self.num_classes, None

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, in_channels, H, W) -> the out_features by name; "linear" is (N, num_classes)."""
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(f"FishNet needs sides that 32 divides, got {tuple(x.shape[-2:])}: pad or crop the images.")
        f0 = self.stem(x)
        f1 = self.tail1(f0)
        f2 = self.tail2(f1)
        f4 = self.bridge(self.tail3(f2))
        f5, _ = self.body1(f4, f2)
        f6, _ = self.body2(f5, f1)
        f7, _ = self.body3(f6, f0)
        f8, refined2 = self.head1(f7, f6)
        f9, refined3 = self.head2(f8, f5)
        f10, refined4 = self.head3(f9, f4)
        taps = (refined2, refined3, refined4) if self.tap == "refined" else (f7, f8, f9)
        return self._outputs(dict(zip(FEATURES, (*taps, f10))))

    def _outputs(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        normed = {f: F.relu(norm(taps[f])) for f, norm in self.out_norms.items()}
        outputs = {f: normed[f] if self.out_norm_act else taps[f] for f in FEATURES if f in self._out_features}
        if self.final is not None:
            outputs["final"] = F.relu_(self.final(normed["fish5"]))
        if self.num_classes is not None:
            outputs["linear"] = self.linear(outputs["final"].mean(dim=(2, 3)))
        return {f: outputs[f] for f in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "FishNet":
        """Freeze the first parts, parameters and batch norms."""
        names = ["stem", "tail1", "tail2", "tail3", "bridge", *(f"{p}{i}" for p in ("body", "head") for i in (1, 2, 3))]
        for name in names[: max(freeze_at, 0)]:
            getattr(self, name).freeze()
        return self
