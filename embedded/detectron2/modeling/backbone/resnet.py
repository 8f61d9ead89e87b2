"""ResNet (arXiv:1512.03385), also with grouped (1611.05431) and deformable (1703.06211, 1811.11168) convolutions."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import CNNBlockBase, DeformConv, ModulatedDeformConv, ShapeSpec

from ..convs import conv_norm
from .backbone import Backbone
from .build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _blocks_per_stage(depth: int) -> tuple[int, ...]:
    if depth not in _BLOCKS:
        raise KeyError(f"No ResNet of depth {depth}: use one of {', '.join(map(str, _BLOCKS))}.")
    return _BLOCKS[depth]


class _ResidualBlock(CNNBlockBase):
    """relu(branch(x) + shortcut(x)). The order of construction and filling is part of a seed. Subclasses define
    `branch`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = conv_norm(in_channels, out_channels, 1, norm, stride=stride)

    def _fill(self, *convs: nn.Module) -> None:
        for conv in convs if self.shortcut is None else (*convs, self.shortcut):
            weight_init.c2_msra_fill(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        out = self.branch(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions (ResNet-18, -34)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm="BN"):
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = conv_norm(in_channels, out_channels, 3, norm, stride=stride)
        self.conv2 = conv_norm(out_channels, out_channels, 3, norm)
        self._fill(self.conv1, self.conv2)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3, 1x1 (ResNet-50 and deeper). `stride_in_1x1` puts the stride on the first convolution (the original
    ResNet), else it is on the second (fb.resnet.torch and torchvision)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ):
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = conv_norm(in_channels, bottleneck_channels, 1, norm, stride=stride_1x1)
        self._make_conv2(bottleneck_channels, norm, num_groups, stride=stride_3x3, dilation=dilation)
        self.conv3 = conv_norm(bottleneck_channels, out_channels, 1, norm)
        self._fill(self.conv1, self.conv2, self.conv3)

    def _make_conv2(self, channels: int, norm, groups: int, **geometry) -> None:
        self.conv2 = conv_norm(channels, channels, 3, norm, groups=groups, **geometry)

    def _apply_conv2(self, x: Tensor) -> Tensor:
        return self.conv2(x)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu_(self._apply_conv2(F.relu_(self.conv1(x)))))


class DeformBottleneckBlock(BottleneckBlock):
    """Bottleneck whose 3x3 convolution is deformable; its offsets start at 0. kwargs: those of BottleneckBlock."""

    def __init__(self, *args, deform_modulated: bool = False, deform_num_groups: int = 1, **kwargs):
        self.deform_modulated = deform_modulated  # before the base class, which calls _make_conv2
        self.deform_num_groups = deform_num_groups
        super().__init__(*args, **kwargs)

    def _make_conv2(self, channels: int, norm, groups: int, **geometry) -> None:
        per_cell = 3 if self.deform_modulated else 2  # (dy, dx) and the modulation
        self.conv2_offset = conv_norm(channels, per_cell * 9 * self.deform_num_groups, 3, bias=True, **geometry)
        conv = ModulatedDeformConv if self.deform_modulated else DeformConv
        geometry.update(groups=groups, deformable_groups=self.deform_num_groups)
        self.conv2 = conv_norm(channels, channels, 3, norm, conv=conv, **geometry)
        for parameter in self.conv2_offset.parameters():
            nn.init.zeros_(parameter)

    def _apply_conv2(self, x: Tensor) -> Tensor:
        offset = self.conv2_offset(x)
        if not self.deform_modulated:
            return self.conv2(x, offset)
        n = offset.shape[1] // 3
        offset, mask = offset.split([2 * n, n], dim=1)
        return self.conv2(x, offset, mask.sigmoid())


class BasicStem(CNNBlockBase):
    """7x7 convolution and max-pooling, stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm="BN"):
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = conv_norm(in_channels, out_channels, 7, norm, stride=2)
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and stages res2, res3, ...; with `num_classes` also a classifier, "linear"."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ):
        """stages: blocks of each stage. Stages above the highest of `out_features` are dropped.
        out_features: among "stem", "res2", ..., "linear"; default the last. freeze_at: see `freeze`."""
        super().__init__()
        self.stem, self.num_classes = stem, num_classes
        names = [f"res{i}" for i in range(2, 2 + len(stages))]
        known = ["stem", *names, "linear"] if num_classes is not None else ["stem", *names]
        self._out_features = known[-1:] if out_features is None else list(out_features)
        valid = self._out_features and set(self._out_features) <= set(known)
        assert valid, f"ResNet's out_features must be among {', '.join(known)}, got {out_features}."
        self.stages, self.stage_names = [], tuple(names[: max(known.index(f) for f in self._out_features)])
        channels, stride = stem.out_channels, stem.stride
        self._out_feature_channels, self._out_feature_strides = {"stem": channels}, {"stem": stride}
        for name, blocks in zip(self.stage_names, stages):
            self.stages.append(nn.Sequential(*blocks))
            self.add_module(name, self.stages[-1])
            channels, stride = blocks[-1].out_channels, stride * math.prod(block.stride for block in blocks)
            self._out_feature_channels[name], self._out_feature_strides[name] = channels, stride
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            self._out_feature_channels["linear"], self._out_feature_strides["linear"] = num_classes, None
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) -> the out_features by name; "linear" is (N, num_classes)."""
        assert x.dim() == 4, f"ResNet takes images (N, C, H, W), got shape {tuple(x.shape)}."
        x = self.stem(x)
        outputs = {"stem": x}
        for name, stage in zip(self.stage_names, self.stages):
            outputs[name] = x = stage(x)
        if self.num_classes is not None:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(1))
        return {name: y for name, y in outputs.items() if name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first parts, parameters and norms: 1 = stem, 2 = stem and res2, ..."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage:
                block.freeze()
        return self

    @staticmethod
    def make_stage(block_class: type, num_blocks: int, *, in_channels: int, out_channels: int, **kwargs) -> list:
        """Blocks of one stage. `<name>_per_block=[...]` gives block i its own `<name>`."""
        per_block = {k.removesuffix("_per_block"): kwargs.pop(k) for k in list(kwargs) if k.endswith("_per_block")}
        for name, values in per_block.items():
            num = len(values)
            assert num == num_blocks, f"make_stage's {name}_per_block has {num} entries for {num_blocks} blocks."
            assert name not in kwargs, f"Cannot call make_stage with both {name} and {name}_per_block."
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in per_block.items()}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **kwargs, **own))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(depth: int, block_class: type | None = None, **kwargs) -> list[list[CNNBlockBase]]:
        """The stages res2..res5 of ResNet-18, -34, -50, -101 or -152; kwargs go to the blocks."""
        blocks, basic = _blocks_per_stage(depth), depth < 50
        out_channels = (64, 128, 256, 512) if basic else (256, 512, 1024, 2048)
        block_class = block_class or (BasicBlock if basic else BottleneckBlock)
        stages = []
        for n, stride, c_in, c_out in zip(blocks, (1, 2, 2, 2), (64, *out_channels), out_channels):
            if not basic:
                kwargs["bottleneck_channels"] = c_out // 4
            kwargs["stride_per_block"] = [stride] + [1] * (n - 1)
            stages.append(make_stage(block_class, n, in_channels=c_in, out_channels=c_out, **kwargs))
        return stages


make_stage = ResNet.make_stage


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """ResNet from `cfg.MODEL.RESNETS`, frozen up to `cfg.MODEL.BACKBONE.FREEZE_AT`."""
    r = cfg.MODEL.RESNETS
    blocks, basic = _blocks_per_stage(r.DEPTH), r.DEPTH < 50
    assert r.RES5_DILATION in (1, 2), f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {r.RES5_DILATION}."
    if basic:
        for key, value in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            assert r[key] == value, f"ResNet-18/34 need MODEL.RESNETS.{key} {value}, got {r[key]}."
        assert not any(r.DEFORM_ON_PER_STAGE), "ResNet-18/34 have no deformable blocks."
    stem = BasicStem(input_shape.channels, r.STEM_OUT_CHANNELS, r.NORM)
    stages, in_channels, out_channels = [], r.STEM_OUT_CHANNELS, r.RES2_OUT_CHANNELS
    bottleneck_channels = r.NUM_GROUPS * r.WIDTH_PER_GROUP
    for stage, n in enumerate(blocks):
        dilation = r.RES5_DILATION if stage == 3 else 1
        stride = 1 if stage == 0 or dilation == 2 else 2
        block_class, kwargs = BasicBlock, {"norm": r.NORM, "stride_per_block": [stride] + [1] * (n - 1)}
        if not basic:
            block_class = BottleneckBlock
            kwargs.update(bottleneck_channels=bottleneck_channels * 2**stage, num_groups=r.NUM_GROUPS)
            kwargs.update(stride_in_1x1=r.STRIDE_IN_1X1, dilation=dilation)
        if r.DEFORM_ON_PER_STAGE[stage]:
            block_class = DeformBottleneckBlock
            kwargs.update(deform_modulated=r.DEFORM_MODULATED, deform_num_groups=r.DEFORM_NUM_GROUPS)
        stages.append(make_stage(block_class, n, in_channels=in_channels, out_channels=out_channels, **kwargs))
        in_channels, out_channels = out_channels, out_channels * 2
    return ResNet(stem, stages, None, r.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT)
