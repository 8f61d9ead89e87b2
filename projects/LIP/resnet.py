"""LIP-ResNet (arXiv:1908.04156, sec. 4.1): ResNet-50 and deeper with LIP in place of its strided layers.

The base is the ResNet with the stride on the 3x3 convolution. conv1 stays a strided convolution; seven layers change:
the stem's max pooling, and the main branch and the shortcut of the first block of res3, res4 and res5.
"""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling.backbone import ResNet
from shared.modeling.bottleneck import BottleneckPieces
from shared.modeling.resnet import resnet_stages

from .logits import BottleneckTrunk
from .pooling import Pooling, make_branch_pool, make_stem_pool

BRANCHES = ("main", "shortcut")
STAGES = ("res3", "res4", "res5")
SITES = ("stem", *STAGES)


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1) -> Conv2d:
    """Convolution without bias, filled as Detectron2's ResNet, and its norm."""
    padding, norm = kernel_size // 2, get_norm(norm, out_channels)
    conv = Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False, norm=norm)
    weight_init.c2_msra_fill(conv)
    return conv


class LIPStem(CNNBlockBase):
    """7x7 convolution of stride 2, norm, ReLU and a pooling of stride 2."""

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 64,
        norm: str = "BN",
        *,
        pooling: Pooling = Pooling(),
        freeze_pool: bool = True,
    ):
        """freeze_pool: whether `freeze` also stops the pooling's parameters."""
        super().__init__(in_channels, out_channels, 4)
        self.freeze_pool = freeze_pool
        self.conv1 = conv_norm(in_channels, out_channels, 7, norm, stride=2)
        self.pool = make_stem_pool(pooling, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, out_channels, H / 4, W / 4), rounded up."""
        return self.pool(F.relu_(self.conv1(x)))

    def freeze(self) -> "LIPStem":
        """Stop conv1 and its norm and, with `freeze_pool`, the pooling's parameters."""
        if self.freeze_pool:
            return super().freeze()
        self.conv1.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self.conv1)
        return self


class LIPPieces(BottleneckPieces):
    """`main_pool` before conv2 and `shortcut_pool` before the shortcut, None where there is none, and `logit_trunk`."""

    def add_pools(self, pooling: Pooling, width: int, branches: Sequence[str]) -> None:
        """Make them. width: the main branch's channels. ValueError: an unknown branch, or none."""
        if not branches or not set(branches) <= set(BRANCHES):
            raise ValueError(f"LIPBottleneckBlock: branches must be among {', '.join(BRANCHES)}, got {list(branches)}.")
        self.logit_trunk = BottleneckTrunk(self.in_channels, pooling.width) if pooling.has_trunk else None
        self.main_pool = make_branch_pool(pooling, width) if "main" in branches else None
        self.shortcut_pool = make_branch_pool(pooling, self.in_channels) if "shortcut" in branches else None

    def common(self, x: Tensor) -> tuple[Tensor, ...]:
        """The trunk's features, from which both branches take their logits."""
        return () if self.logit_trunk is None else (self.logit_trunk(x),)

    def spatial(self, y: Tensor, *common: Tensor) -> Tensor:
        return super().spatial(y if self.main_pool is None else self.main_pool(y, *common), *common)

    def identity(self, x: Tensor, *common: Tensor) -> Tensor:
        return super().identity(x if self.shortcut_pool is None else self.shortcut_pool(x, *common), *common)


class LIPBottleneckBlock(LIPPieces, CNNBlockBase):
    """The first block of a stage: 1x1, pooling, 1x1, 1x1 beside pooling, 1x1; strided by its poolings.

    LIP's logits come from the block's input. With the Bottleneck module both branches have heads of their own on one
    trunk; with any other each branch takes them from the map that it pools.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 2,
        norm: str = "BN",
        pooling: Pooling = Pooling(),
        branches: Sequence[str] = BRANCHES,
        kernel_after: int = 1,
    ):
        """branches: which of them pool; the other keeps its strided convolution. kernel_after: of the main branch's
        convolution after the pooling, 1 as in the paper, or 3.
        """
        super().__init__(in_channels, out_channels, stride)
        if stride != 2:
            raise ValueError(f"LIPBottleneckBlock pools with stride 2, got stride={stride}: use BottleneckBlock.")
        if kernel_after not in (1, 3):
            raise ValueError(f"LIPBottleneckBlock: kernel_after must be 1 or 3, got {kernel_after}.")
        width = bottleneck_channels
        self.add_pools(pooling, width, branches)
        self.shortcut = conv_norm(in_channels, out_channels, 1, norm, 1 if self.shortcut_pool is not None else stride)
        self.conv1 = conv_norm(in_channels, width, 1, norm)
        if self.main_pool is not None:
            self.conv2 = conv_norm(width, width, kernel_after, norm)
        else:
            self.conv2 = conv_norm(width, width, 3, norm, stride)
        self.conv3 = conv_norm(width, out_channels, 1, norm)


def branches_by_stage(sites: Iterable[str]) -> dict[str, list[str]]:
    """{"res3": branches that pool, ...} from names like "res3" (both branches) and "res4.main"; "stem" is left out.

    Raises:
        ValueError: an unknown site.
    """
    found = {stage: set() for stage in STAGES}
    for site in sites:
        stage, dot, branch = site.partition(".")
        if site == "stem":
            continue
        if stage not in STAGES or (dot and branch not in BRANCHES):
            raise ValueError(
                f"LIP-ResNet has no site {site!r}: use {', '.join(SITES)}, or one branch: res3.main, res3.shortcut."
            )
        found[stage] |= {branch} if dot else set(BRANCHES)
    return {stage: [b for b in BRANCHES if b in chosen] for stage, chosen in found.items()}


def lip_resnet(
    depth: int = 50,
    *,
    in_channels: int = 3,
    stem_channels: int = 64,
    res2_channels: int = 256,
    norm: str = "FrozenBN",
    pooling: Pooling = Pooling(),
    sites: Sequence[str] = SITES,
    kernel_after: int = 1,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    zero_init_residual: bool = False,
    num_classes: int | None = None,
    out_features: Sequence[str] | None = None,
    freeze_at: int = 0,
    freeze_stem_pool: bool = True,
) -> ResNet:
    """Detectron2's ResNet with `pooling` at `sites`.

    Args:
        pooling: an ordinary one gives the paper's controls in the same frame.
        sites: "stem", "res3", "res4", "res5", or one branch: "res3.main", "res3.shortcut". Other layers stay those of
            the plain ResNet: max pooling at the stem, strided convolutions in the blocks.
        kernel_after: see `LIPBottleneckBlock`. deform_*: see `resnet_stages`; a pooled main branch has no 3x3 for it.
        zero_init_residual: the last norm of each block starts at 0 (ImageNet training).
        freeze_at: 1 = stem, 2 = stem and res2, ... Instance norms of what is not frozen stay trainable.
        freeze_stem_pool: False leaves the stem's logit module trainable whatever `freeze_at` is.
    Raises ValueError for a depth other than 50, 101 and 152, an unknown site, `zero_init_residual` with frozen norms.
    """
    if depth < 50:
        raise ValueError(f"LIP-ResNet is built of bottleneck blocks: depth must be 50, 101 or 152, got {depth}.")
    at_stem = pooling if "stem" in sites else Pooling(kind="max")
    stem = LIPStem(in_channels, stem_channels, norm, pooling=at_stem, freeze_pool=freeze_stem_pool)
    stages = resnet_stages(
        depth,
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        norm=norm,
        stride_in_1x1=False,
        width_per_group=res2_channels // 4,
        deform_on_per_stage=deform_on_per_stage,
        deform_modulated=deform_modulated,
    )
    for blocks, branches in zip(stages[1:], branches_by_stage(sites).values()):
        if branches:
            blocks[0] = _pooled(blocks[0], norm, pooling, branches, kernel_after)
    if zero_init_residual:
        _zero_last_norms(stages, norm)
    return ResNet(stem, stages, num_classes, out_features, freeze_at)


def _pooled(
    strided: CNNBlockBase, norm: str, pooling: Pooling, branches: Sequence[str], kernel_after: int
) -> LIPBottleneckBlock:
    """The block in place of a strided bottleneck block."""
    return LIPBottleneckBlock(
        strided.in_channels,
        strided.out_channels,
        bottleneck_channels=strided.conv1.out_channels,
        stride=strided.stride,
        norm=norm,
        pooling=pooling,
        branches=branches,
        kernel_after=kernel_after,
    )


def _zero_last_norms(stages: Sequence[Sequence[CNNBlockBase]], norm: str) -> None:
    for blocks in stages:
        for block in blocks:
            if not isinstance(getattr(block.conv3.norm, "weight", None), nn.Parameter):
                raise ValueError(f"zero_init_residual needs a trainable norm, got norm={norm!r}: use BN or SyncBN.")
            nn.init.zeros_(block.conv3.norm.weight)
