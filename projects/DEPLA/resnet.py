"""DEPLA-ResNet and DEPLA-SE-ResNet ("Aggregation with Feature Detection", sec. 4.1 and Figure 6).

DEPLA takes the place of the sum in three residual blocks of the third stage, res4: X is the shortcut, Y the output of
the weight layers (in SE-ResNet after their gate). The block's ReLU follows. Which three is not stated: here the last.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from shared.modeling.bottleneck import BottleneckPieces
from shared.modeling.resnet import BLOCKS_PER_STAGE
from shared.modeling.se_resnet import SEBottleneckBlock

from .depla import DEPLASpec

STAGES = ("res2", "res3", "res4", "res5")
LAST_THREE = (-3, -2, -1)


class DEPLAPieces(BottleneckPieces):
    """`depla`, unless that is None, in the place of the sum."""

    def merge(self, identity: Tensor, residual: Tensor) -> Tensor:
        return super().merge(identity, residual) if self.depla is None else self.depla(identity, residual)


class DEPLABottleneckBlock(DEPLAPieces, SEBottleneckBlock):
    """relu(DEPLA(identity(x), residual(x))); without `depla` a (squeeze-and-excitation) bottleneck block."""

    def __init__(
        self, in_channels: int, out_channels: int, *, depla: DEPLASpec | None = DEPLASpec(), se_ratio: int = 0, **kwargs
    ):
        """kwargs: those of BottleneckBlock."""
        super().__init__(in_channels, out_channels, se_ratio=se_ratio, **kwargs)
        self.depla = None if depla is None else depla(out_channels, out_channels)


def block_indices(blocks: Iterable[int], number: int) -> list[int]:
    """Indices from 0, sorted; negative ones count from the end. ValueError: out of range or named twice."""
    given = list(blocks)
    found = sorted(i + number if i < 0 else i for i in given)
    if len(set(found)) != len(found) or any(not 0 <= i < number for i in found):
        raise ValueError(f"DEPLA: blocks must be different indices of the stage's {number} blocks, got {given}.")
    return found


def depla_resnet(
    depth: int = 50,
    *,
    depla: DEPLASpec | None = DEPLASpec(),
    stage: str = "res4",
    blocks: Sequence[int] = LAST_THREE,
    se_ratio: int = 0,
    in_channels: int = 3,
    stem_channels: int = 64,
    res2_channels: int = 256,
    norm: str = "FrozenBN",
    stride_in_1x1: bool = False,
    num_groups: int = 1,
    width_per_group: int = 64,
    num_classes: int | None = None,
    out_features: Sequence[str] | None = None,
    freeze_at: int = 0,
) -> ResNet:
    """Detectron2's ResNet with DEPLA in `blocks` of `stage`.

    Args:
        depla: None gives the host, ResNet or SE-ResNet; all names but those with `depla` are the same.
        blocks: indices within the stage; negative ones count from its end.
        se_ratio: 16 for SE-ResNet, 0 for ResNet.
        num_classes: adds the classifier, output "linear". freeze_at: 1 = stem, 2 = stem and res2, ...
    Raises ValueError for a depth other than 50, 101 and 152, an unknown stage, blocks out of range.
    """
    if depth not in BLOCKS_PER_STAGE or depth < 50:
        raise ValueError(f"DEPLA-ResNet is built of bottleneck blocks: depth must be 50, 101 or 152, got {depth}.")
    if stage not in STAGES:
        raise ValueError(f"DEPLA-ResNet: stage must be one of {', '.join(STAGES)}, got {stage!r}.")
    ins, outs, width = stem_channels, res2_channels, num_groups * width_per_group
    stages = []
    for i, (name, number) in enumerate(zip(STAGES, BLOCKS_PER_STAGE[depth])):
        kwargs = {"bottleneck_channels": width, "norm": norm, "stride_in_1x1": stride_in_1x1, "num_groups": num_groups}
        kwargs["stride_per_block"] = [1 if i == 0 else 2] + [1] * (number - 1)
        block_class: type[CNNBlockBase] = SEBottleneckBlock if se_ratio else BottleneckBlock
        if se_ratio:
            kwargs["se_ratio"] = se_ratio
        if depla is not None and name == stage:
            chosen = block_indices(blocks, number)
            block_class = DEPLABottleneckBlock
            kwargs["depla_per_block"] = [depla if j in chosen else None for j in range(number)]
        stages.append(ResNet.make_stage(block_class, number, in_channels=ins, out_channels=outs, **kwargs))
        ins, outs, width = outs, outs * 2, width * 2
    stem = BasicStem(in_channels=in_channels, out_channels=stem_channels, norm=norm)
    return ResNet(stem, stages, num_classes, out_features, freeze_at)
