"""ResNet stages for LazyConfig with deformable convolutions per stage."""

from collections.abc import Sequence

from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, DeformBottleneckBlock, ResNet

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet_stages(
    depth: int,
    *,
    stem_channels: int = 64,
    res2_channels: int | None = None,
    norm: str = "FrozenBN",
    stride_in_1x1: bool = True,
    num_groups: int = 1,
    width_per_group: int = 64,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
) -> list[list]:
    """Stages res2..res5 as `ResNet(stages=...)` wants them; what `build_resnet_backbone` builds.

    `ResNet.make_default_stages` has no switch for deformable blocks. Module names, construction
    order (and so initial weights for a seed) are those of the cfg route.

    Args:
        res2_channels: output channels of res2, doubled per stage; default 256 (64 below depth 50).
        deform_on_per_stage: res2 first; (False, True, True, True) is the papers' "DCN, c3-c5".
        deform_modulated: modulated deformable convolutions (v2).
    Raises:
        ValueError: unknown depth; a bottleneck option for depth 18 or 34.
    """
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"resnet_stages: depth must be one of {list(BLOCKS_PER_STAGE)}, got {depth}.")
    basic = depth < 50
    if basic and (any(deform_on_per_stage) or num_groups != 1):
        raise ValueError(
            f"resnet_stages: depth {depth} has basic blocks, which know neither deformable "
            f"convolutions nor groups; use depth 50 or more."
        )
    in_channels, out_channels = stem_channels, res2_channels or (64 if basic else 256)
    bottleneck = num_groups * width_per_group
    stages = []
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        kwargs = {"stride_per_block": [1 if i == 0 else 2] + [1] * (num_blocks - 1), "norm": norm}
        block = BasicBlock
        if not basic:
            block = BottleneckBlock
            kwargs.update(bottleneck_channels=bottleneck, stride_in_1x1=stride_in_1x1, num_groups=num_groups)
            if deform_on_per_stage[i]:
                block = DeformBottleneckBlock
                kwargs.update(deform_modulated=deform_modulated, deform_num_groups=deform_num_groups)
        stages.append(
            ResNet.make_stage(block, num_blocks, in_channels=in_channels, out_channels=out_channels, **kwargs)
        )
        in_channels, out_channels, bottleneck = out_channels, out_channels * 2, bottleneck * 2
    return stages
