"""DenseNet-121 (arXiv:1608.06993) as a detection backbone, and LIP-DenseNet-121 (arXiv:1908.04156, sec. 4.1).

Stages are named after their strides, dense2 (4) to dense5 (32), as res2 to res5 are. LIP replaces the stem's max
pooling and the average poolings of the three transitions. Pre-trained weights of other libraries have other names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone import Backbone

from .logits import start_at_zero
from .pooling import LIPPool2d, Pooling, make_pool
from .resnet import LIPStem

STAGES = ("dense2", "dense3", "dense4", "dense5")
SITES = ("stem", *STAGES[1:])
BLOCKS_121 = (6, 12, 24, 16)
BOTTLENECK = 4  # width of a layer's 1x1 convolution, in growths


class DenseLayer(nn.Module):
    """norm, ReLU, 1x1, norm, ReLU, 3x3: `growth` new channels from all that came before."""

    def __init__(self, in_channels: int, growth: int, norm: str):
        super().__init__()
        width = BOTTLENECK * growth
        self.norm1 = get_norm(norm, in_channels)
        self.conv1 = Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = get_norm(norm, width)
        self.conv2 = Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, growth, H, W)."""
        return self.conv2(F.relu_(self.norm2(self.conv1(F.relu_(self.norm1(x))))))


class DenseStage(CNNBlockBase):
    """A transition (not in the first stage), dense layers, and the norm and ReLU that follow them.

    That norm is what the next transition, or the classifier, begins with; so an output of the backbone is normalised.
    """

    def __init__(
        self, in_channels: int, num_layers: int, *, growth: int = 32, norm: str = "BN", pooling: Pooling | None = None
    ):
        """pooling: that of the transition, which halves the channels and the sides; None: no transition."""
        channels = in_channels if pooling is None else in_channels // 2
        super().__init__(in_channels, channels + num_layers * growth, 1 if pooling is None else 2)
        self.transition = None
        if pooling is not None:
            self.transition = nn.Sequential()
            self.transition.add_module("conv", Conv2d(in_channels, channels, 1, bias=False))
            self.transition.add_module("pool", make_pool(pooling, channels, kernel_size=2, padding=0))
        self.layers = nn.ModuleList(DenseLayer(channels + i * growth, growth, norm) for i in range(num_layers))
        self.norm = get_norm(norm, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), rounded down."""
        if self.transition is not None:
            x = self.transition(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return F.relu_(self.norm(x))


class DenseNet(Backbone):
    """The plain host without `sites`, LIP-DenseNet with them. Defaults otherwise: DenseNet-121 (BC, growth 32)."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        stem_channels: int = 64,
        growth: int = 32,
        blocks: Sequence[int] = BLOCKS_121,
        norm: str = "FrozenBN",
        pooling: Pooling = Pooling(init="random"),
        sites: Sequence[str] = SITES,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        freeze_stem_pool: bool = True,
    ):
        """blocks: dense layers of each of the four stages. sites: among SITES, "dense3" being the transition before
        that stage. init "random" is what the published LIP-DenseNet was trained from, unlike the LIP-ResNets.
        num_classes: adds the classifier, output "linear". out_features: default the last output. freeze_at: 1 = stem,
        2 = stem and dense2, ... freeze_stem_pool: False leaves the stem's logit module trainable.

        ValueError: an unknown site or output, a number of stages other than four.
        """
        super().__init__()
        if unknown := set(sites) - set(SITES):
            raise ValueError(f"DenseNet has no site {sorted(unknown)[0]!r}: use {', '.join(SITES)}.")
        if len(blocks) != len(STAGES):
            raise ValueError(f"DenseNet has {len(STAGES)} stages, got blocks={list(blocks)}.")
        ordinary = {"stem": Pooling(kind="max")}
        at = {site: pooling if site in sites else ordinary.get(site, Pooling(kind="average")) for site in SITES}
        self.stem = LIPStem(in_channels, stem_channels, norm, pooling=at["stem"], freeze_pool=freeze_stem_pool)
        channels, stride = stem_channels, self.stem.stride
        self._out_feature_channels, self._out_feature_strides = {"stem": channels}, {"stem": stride}
        for name, num_layers in zip(STAGES, blocks):
            stage = DenseStage(channels, num_layers, growth=growth, norm=norm, pooling=at.get(name))
            self.add_module(name, stage)
            channels, stride = stage.out_channels, stride * stage.stride
            self._out_feature_channels[name], self._out_feature_strides[name] = channels, stride
        self.num_classes = num_classes
        if num_classes is not None:
            self.linear = nn.Linear(channels, num_classes)
            self._out_feature_channels["linear"], self._out_feature_strides["linear"] = num_classes, None
        self._fill(pooling.init)
        known = list(self._out_feature_channels)
        self._out_features = known[-1:] if out_features is None else list(out_features)
        if not self._out_features or not set(self._out_features) <= set(known):
            raise ValueError(f"DenseNet: out_features must be among {', '.join(known)}, got {self._out_features}.")
        self.freeze(freeze_at)

    def _fill(self, logit_init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        for module in self.modules():
            if isinstance(module, LIPPool2d):
                start_at_zero(module.logit, logit_init)
        if self.num_classes is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, in_channels, H, W) -> the out_features by name; "linear" is (N, num_classes)."""
        outputs = {"stem": self.stem(x)}
        x = outputs["stem"]
        for name in STAGES:
            outputs[name] = x = getattr(self, name)(x)
        if self.num_classes is not None:
            outputs["linear"] = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return {name: outputs[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "DenseNet":
        """Freeze the first parts, parameters and batch norms."""
        for part in [self.stem, *(getattr(self, name) for name in STAGES)][: max(freeze_at, 0)]:
            part.freeze()
        return self
