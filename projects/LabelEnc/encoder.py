"""The label encoding function h: label maps to a feature pyramid (LabelEnc, arXiv:2007.03282, Sec. 3.4).
n, N: images, K: classes, U: classes that are present, H x W: size of the padded batch."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from shared.precision import no_autocast

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
INITS = ("official", "msra")
STEM_ACTS = ("", "relu")


class LabelMaps(NamedTuple):
    """Label maps of n images, without the channels of absent classes: those are zero."""

    maps: Tensor  # (n, U, H, W)
    present: Tensor  # (U,) int64, ascending, U >= 1


class LabelBottleneck(nn.Module):
    """1x1, ReLU, 3x3 with the stride, ReLU, 1x1, plus the shortcut, ReLU; biases, but for the shortcut's, and no norms.

    ImageNet weights find their place by the end of a name: "res3.0.conv2", as Detectron2's blocks say, would take them.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        """stride: 2 has a shortcut with a strided 1x1 convolution, 1 the identity."""
        super().__init__()
        width = out_channels // 4
        self.reduce = nn.Conv2d(in_channels, width, 1)
        self.spatial = nn.Conv2d(width, width, 3, stride, padding=1)
        self.expand = nn.Conv2d(width, out_channels, 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self.finish(self.reduce(x), self.shortcut(x))

    def finish(self, reduced: Tensor, shortcut: Tensor) -> Tensor:
        """The rest, from what `reduce` and `shortcut` return."""
        return F.relu(self.expand(F.relu(self.spatial(F.relu(reduced)))) + shortcut)


class LabelEncoder(Backbone):
    """A ResNet of `blocks` bottlenecks a stage, without batch norm; strided convolutions instead of max pooling.

    What the paper leaves open is as in its authors' code: a stem of 7x7, stride 2, `stem_out` wide, with bias, without
    activation. Two exact savings, each a switch: `gather_classes` reads the stem's weights of the present classes alone
    (COCO has about 4 of 80 in an image); `fold_stem` composes the stem with each of stage 2's two 1x1 convolutions,
    which nothing separates, so that its wide map at half the resolution is never made.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stem_out: int = 128,
        stem_act: str = "",
        res2_out: int = 256,
        blocks: Sequence[int] = (1, 2, 2, 1),
        init: str = "official",
        gather_classes: bool = True,
        fold_stem: bool = True,
    ):
        """res2_out: channels of res2, a multiple of 4, doubled per stage. init: "official" (uniform of variance 1 /
        fan-in; PyTorch's default for biases and the stem) or "msra" (normal, fan-out, zero biases: the paper's
        "Gaussian"). ValueError for values that do not go together."""
        super().__init__()
        if len(blocks) != len(STRIDES) or min(blocks) < 1:
            raise ValueError(f"LabelEnc: blocks (BLOCKS) is {list(blocks)}; expected {len(STRIDES)} positive numbers.")
        if fold_stem and stem_act:
            raise ValueError(
                f"LabelEnc: a stem with stem_act (STEM_ACT) {stem_act!r} cannot be folded: set fold_stem (FOLD_STEM) "
                "to False."
            )
        self.num_classes, self.gather_classes, self.fold_stem = num_classes, gather_classes, fold_stem
        self.stem = nn.Conv2d(num_classes, stem_out, 7, stride=2, padding=3)
        self.stem_act = nn.ReLU() if stem_act == "relu" else nn.Identity()
        channels = [stem_out] + [res2_out * 2**i for i in range(len(blocks))]
        self.stages = nn.ModuleDict()
        for i, number in enumerate(blocks):
            first = LabelBottleneck(channels[i], channels[i + 1], 2)
            others = [LabelBottleneck(channels[i + 1], channels[i + 1], 1) for _ in range(number - 1)]
            self.stages[f"stage{i + 2}"] = nn.Sequential(first, *others)
        self._initialize(init)
        self._out_features = list(STRIDES)
        self._out_feature_strides = dict(STRIDES)
        self._out_feature_channels = dict(zip(STRIDES, channels[1:]))

    def _initialize(self, init: str) -> None:
        for layer in (self if init == "msra" else self.stages).modules():
            if isinstance(layer, nn.Conv2d) and init == "official":
                nn.init.kaiming_uniform_(layer.weight, a=1)
            elif isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, groups: list[LabelMaps]) -> dict[str, Tensor]:
        """Label maps of the batch, in groups of images that share their channels -> {"res2": (N, C, H / 4, W / 4), ...}
        for the N images of all groups."""
        first, *others = self.stages.values()
        reduced, shortcut = (torch.cat(maps) for maps in zip(*map(self._stem, groups)))
        x = first[1:](first[0].finish(reduced, shortcut))
        maps = [x]
        for stage in others:
            maps.append(stage(maps[-1]))
        return dict(zip(STRIDES, maps))

    def _stem(self, group: LabelMaps) -> tuple[Tensor, Tensor]:
        """What stage 2's first block makes of the stem's output: by `reduce` and by `shortcut`."""
        maps, weight, block = group.maps, self.stem.weight, self.stages["stage2"][0]
        if self.gather_classes:
            weight = weight[:, group.present]
        else:
            n, _, *size = maps.shape
            maps = maps.new_zeros(n, self.num_classes, *size).index_copy(1, group.present, maps)
        if not self.fold_stem:
            x = self.stem_act(F.conv2d(maps, weight, self.stem.bias, stride=2, padding=3))
            return block.reduce(x), block.shortcut(x)
        return self._folded(maps, weight, block.reduce), self._folded(maps, weight, block.shortcut)

    def _folded(self, maps: Tensor, weight: Tensor, pointwise: nn.Conv2d) -> Tensor:
        """`pointwise` of the stem as one convolution. A 1x1 convolution adds no padding: exact at borders too."""
        with no_autocast(maps):
            matrix = pointwise.weight[:, :, 0, 0]
            bias = matrix @ self.stem.bias
            if pointwise.bias is not None:
                bias = bias + pointwise.bias
            weight = torch.einsum("om,mchw->ochw", matrix, weight)
        return F.conv2d(maps, weight, bias, stride=2 * pointwise.stride[0], padding=3)


def build_encoder(body: LabelEncoder, backbone: FPN) -> FPN:
    """A pyramid like `backbone`'s on `body`: its levels, width, norm, fusion and kind of top block, own weights.

    Raises ValueError for levels or a top block that the encoder cannot have.
    """
    below = backbone.bottom_up.output_shape()
    name_of = {stride: name for name, stride in STRIDES.items()}
    if odd := [f"{f} ({below[f].stride})" for f in backbone.in_features if below[f].stride not in name_of]:
        raise ValueError(f"LabelEnc: the encoder has maps of strides 4 to 32; the backbone's FPN reads {odd}.")
    own_name = {f: name_of[below[f].stride] for f in backbone.in_features}
    channels = next(iter(backbone.output_shape().values())).channels
    return FPN(
        body,
        list(own_name.values()),
        channels,
        norm=_norm_like(backbone.output_convs[0]),
        top_block=_top_block_like(backbone.top_block, body, own_name, channels),
        fuse_type=backbone._fuse_type,
    )


def _norm_like(conv: nn.Module) -> str | Callable[[int], nn.Module]:
    """For FPN's `norm`: what makes a norm as `conv` has one."""
    norm = conv.norm
    if norm is None:
        return ""

    def make(_: int) -> nn.Module:
        fresh = copy.deepcopy(norm)
        if hasattr(fresh, "reset_parameters"):
            fresh.reset_parameters()
        return fresh

    return make


def _top_block_like(block: nn.Module | None, body: LabelEncoder, own_name: dict[str, str], channels: int):
    """The coarse levels anew: their input may have another width and name here."""
    if block is None:
        return None
    source = own_name.get(block.in_feature, block.in_feature)
    if isinstance(block, LastLevelP6P7):
        shapes = body.output_shape()
        return LastLevelP6P7(shapes[source].channels if source in shapes else channels, channels, source)
    if isinstance(block, LastLevelMaxPool):
        fresh = LastLevelMaxPool()
        fresh.in_feature = source
        return fresh
    raise ValueError(
        f"LabelEnc: the encoder's FPN can have LastLevelMaxPool or LastLevelP6P7 on top, as the backbone's must; "
        f"it has {type(block).__name__}."
    )
