"""ResNet's bottleneck blocks with MSFMs inside (sec. 3.2, Figure 1b), and stages of them.

Position 1 and 2: behind the ReLU of conv1 and of conv2. Position 3: behind conv3 and its norm, before the sum with the
shortcut. Names of the block's own layers stay, so that weights of a plain ResNet fit.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from detectron2.modeling.backbone.resnet import BottleneckBlock, DeformBottleneckBlock
from shared.modeling.bottleneck import BottleneckPieces, DeformPieces
from shared.modeling.resnet import resnet_stages

from .module import MSFM
from .spec import POSITIONS, STAGES, MSFMSpec


class MSFMPieces(BottleneckPieces):
    """`msfm1`, `msfm2` and `msfm3` at their positions, identities where there is none."""

    def insert(self, msfm: MSFMSpec, stage: str) -> None:
        """Make them. stage: "res3", ...; chooses the ratio. ValueError: see `MSFM`; a stage that `msfm` leaves out."""
        if stage not in msfm.stages:
            raise ValueError(f"MSFM: a block of stage {stage!r} needs a ratio, msfm.stages has {list(msfm.stages)}.")
        ratio = msfm.ratios[msfm.stages.index(stage)]
        widths = (self.conv1.out_channels, self.conv1.out_channels, self.out_channels)
        for position, channels, groups in zip(POSITIONS, widths, msfm.norm_groups):
            module: nn.Module = nn.Identity()
            if position in msfm.positions:
                place = f"MSFM in {stage}, position {position}"
                module = MSFM(channels, ratio=ratio, norm_groups=groups, spec=msfm, place=place)
            self.add_module(f"msfm{position}", module)

    def reduce(self, x: Tensor) -> Tensor:
        return self.msfm1(super().reduce(x))

    def spatial(self, y: Tensor, *common: Tensor) -> Tensor:
        return self.msfm2(super().spatial(y, *common))

    def expand(self, y: Tensor) -> Tensor:
        return self.msfm3(super().expand(y))


class _MSFMBlock(MSFMPieces):
    def __init__(self, *args, msfm: MSFMSpec, stage: str, **kwargs):
        """msfm, stage: see `insert`. Other arguments: those of the block without modules."""
        super().__init__(*args, **kwargs)
        self.insert(msfm, stage)


class MSFMBottleneckBlock(_MSFMBlock, BottleneckBlock):
    """1x1, 3x3 and 1x1 convolutions with MSFMs."""


class MSFMDeformBottleneckBlock(_MSFMBlock, DeformPieces, DeformBottleneckBlock):
    """The same with a deformable 3x3 convolution, plain or modulated."""


def _with_msfm(block: BottleneckBlock, msfm: MSFMSpec, stage: str) -> nn.Module:
    """A plain block as one with modules. Its class is swapped in place: layers, and for a seed their weights, stay."""
    deform = isinstance(block, DeformBottleneckBlock)
    block.__class__ = MSFMDeformBottleneckBlock if deform else MSFMBottleneckBlock
    block.insert(msfm, stage)
    return block


def make_msfm_stages(
    depth: int = 50,
    *,
    msfm: MSFMSpec = MSFMSpec(),
    stem_channels: int = 64,
    res2_channels: int = 256,
    norm: str = "FrozenBN",
    stride_in_1x1: bool = False,
    num_groups: int = 1,
    width_per_group: int = 64,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
) -> list[list[nn.Module]]:
    """Stages res2..res5 for `ResNet(stages=...)`, with MSFMs in every block of `msfm.stages`.

    Other arguments: see `resnet_stages`. A ResNet's `freeze_at` of 3 and more also freezes the modules of res3 and up.

    Raises:
        ValueError: depth 18 or 34, which have no bottleneck blocks; widths that ratios or groups do not divide.
    """
    if depth < 50:
        raise ValueError(f"MSFM stands in bottleneck blocks: depth must be 50, 101 or 152, got {depth}.")
    stages = resnet_stages(
        depth,
        stem_channels=stem_channels,
        res2_channels=res2_channels,
        norm=norm,
        stride_in_1x1=stride_in_1x1,
        num_groups=num_groups,
        width_per_group=width_per_group,
        deform_on_per_stage=deform_on_per_stage,
        deform_modulated=deform_modulated,
        deform_num_groups=deform_num_groups,
    )
    for name, blocks in zip(STAGES, stages):
        if name in msfm.stages:
            blocks[:] = [_with_msfm(block, msfm, name) for block in blocks]
    return stages
