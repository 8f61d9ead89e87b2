"""LIP as a function of a LazyConfig model: in its ResNet, or with LIP-DenseNet in the ResNet's place."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detectron2.config import LazyCall as L
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import BasicStem, ResNet
from projects import hosts
from shared.modeling.bottleneck import DeformPieces, add_method
from shared.modeling.changed_resnet import ResNetChange

from .densenet import STAGES as DENSE_STAGES
from .pooling import Pooling, make_stem_pool
from .resnet import SITES, LIPPieces, LIPStem, branches_by_stage, conv_norm


def with_lip(model: DictConfig, **knobs: Any) -> DictConfig:
    """LIP in the stem and in the strided blocks of the host's ResNet; other layers, and what is frozen, stay.

    knobs: pooling (of `Pooling`), sites, kernel_after, freeze_stem_pool; see `lip_resnet`. The trunks of Bottleneck-128
    are as much narrower as the ResNet is. What is new trains in frozen stages, too; a frozen stem's pool, as in LIP's
    own configs, only with freeze_stem_pool=False.
    """
    model = hosts.copy_of(model)
    resnet = hosts.require_resnet(model, "LIP")
    node = hosts.project_node("LIP/configs/common/lip_resnet.py", "bottom_up")
    node.pooling.width //= hosts.narrowness(resnet)
    keys = ("pooling", "sites", "kernel_after", "freeze_stem_pool")
    change = L(LIPInResNet)(**{key: node[key] for key in keys})
    hosts.set_knobs(change, knobs, "LIP")
    hosts.add_change(model, "lip", change, "LIP", resnet)
    return model


def with_lip_densenet(model: DictConfig, **knobs: Any) -> DictConfig:
    """LIP-DenseNet-121 in the place of the host's backbone, below its feature pyramid, nothing frozen.

    knobs: of `DenseNet`; sites=[] gives the plain DenseNet. Its norm is the host's; in place of a frozen one SyncBN.
    With pretrained weights of its own, norm="FrozenBN" and freeze_at=2 are those of LIP's config.
    """
    model = hosts.copy_of(model)
    node = hosts.project_node("LIP/configs/common/lip_densenet.py", "bottom_up")
    old = hosts.bottom_up_of(model)
    node.update(freeze_at=0, norm=hosts.trained_norm(old, node.norm))
    hosts.set_knobs(node, knobs, "LIP-DenseNet")
    hosts.replace_bottom_up(model, node, DENSE_STAGES, "LIP-DenseNet")
    return model


@dataclass(frozen=True)
class LIPInResNet(ResNetChange):
    """The arguments are those of `lip_resnet`. Layers of the blocks keep their names; of a pooled main branch the 3x3
    convolution, deformable or not, is replaced by one without stride of `kernel_after`, 1 in the paper."""

    pooling: Pooling
    sites: Sequence[str] = SITES
    kernel_after: int = 1
    freeze_stem_pool: bool = True

    def change(self, resnet: ResNet) -> None:
        if self.kernel_after not in (1, 3):
            raise ValueError(f"kernel_after must be 1 or 3, got {self.kernel_after}")
        if "stem" in self.sites:
            self._pool_stem(resnet.stem)
        for stage, branches in branches_by_stage(self.sites).items():
            if branches and hasattr(resnet, stage):  # stages that nothing reads are not built
                self._pool_block(getattr(resnet, stage)[0], stage, branches)

    def _pool_stem(self, stem: nn.Module) -> None:
        if type(stem) is not BasicStem:
            raise ValueError(f"its stem must be a BasicStem, got {type(stem).__name__}")
        stem.__class__ = LIPStem
        stem.freeze_pool = self.freeze_stem_pool
        stem.pool = make_stem_pool(self.pooling, stem.out_channels)
        if self.freeze_stem_pool and not stem.conv1.weight.requires_grad:
            stem.pool.requires_grad_(False)

    def _pool_block(self, block: CNNBlockBase, stage: str, branches: Sequence[str]) -> None:
        add_method(block, LIPPieces)
        if block.stride != 2 or block.conv2.groups != 1:
            raise ValueError(
                f"LIP pools with stride 2 and knows no groups, but {stage}'s first block has stride {block.stride} and "
                f"{block.conv2.groups} groups"
            )
        width = block.conv1.out_channels
        block.add_pools(self.pooling, width, branches)
        if block.main_pool is not None:
            norm = block.conv2.norm
            block.conv1.stride = (1, 1)
            block.conv2 = conv_norm(
                width, width, self.kernel_after, "" if norm is None else lambda _: copy.deepcopy(norm)
            )
            if isinstance(block, DeformPieces):
                block.conv2_offset = None
        if block.shortcut_pool is not None:
            block.shortcut.stride = (1, 1)
