"""DEPLA and its backbones as functions of a LazyConfig model: in a ResNet or FishNet, in the feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detectron2.config import LazyCall as L
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone import ResNet
from projects import hosts
from shared.errors import UserError
from shared.modeling.bottleneck import add_method
from shared.modeling.changed_resnet import ResNetChange
from shared.modeling.fishnet import FEATURES, FishNet
from shared.modeling.se_resnet import RATIO, SEGate, SEPieces

from .depla import DEPLASpec
from .fpn import DEPLAFPN
from .padding import PaddingMaskRCNN
from .resnet import LAST_THREE, STAGES, DEPLAPieces, block_indices, depla_resnet

SITES = "DEPLA/configs/common/sites.py"


def with_depla(model: DictConfig, **knobs: Any) -> DictConfig:
    """DEPLA in the host's backbone: in the last three blocks of a ResNet's res4, in a FishNet's UR and DR blocks.

    knobs: of `DEPLASpec`; for a ResNet also stage and blocks. mask_padding=True makes an R-CNN a PaddingMaskRCNN.
    """
    model = hosts.copy_of(model)
    bottom_up = hosts.bottom_up_of(model)
    spec = hosts.project_node(SITES, "backbone_depla")
    key = {FishNet: "aggregation", depla_resnet: "depla"}.get(hosts.target_of(bottom_up))
    if key is not None:  # a backbone with sites of its own; the key's default is no None
        if bottom_up.get(key, spec) is not None:
            raise UserError("The model has DEPLA in its backbone already.")
        hosts.set_knobs(spec, knobs, "DEPLA")
        bottom_up[key] = spec
    else:
        spec = _in_resnet(model, spec, knobs)
    return _know_padding(model, spec)


def _in_resnet(model: DictConfig, spec: DictConfig, knobs: dict[str, Any]) -> DictConfig:
    resnet = hosts.require_resnet(model, "DEPLA")
    own = hosts.project_node("DEPLA/configs/common/depla_resnet.py", "backbone")
    arguments = {key: value for key, value in spec.items() if key != "_target_"}
    change = L(DEPLAInResNet)(**arguments, stage=own.stage, blocks=own.blocks)
    number = len(getattr(resnet, knobs.get("stage", own.stage), ()))
    change.blocks = [block for block in own.blocks if block >= -number] or own.blocks
    hosts.set_knobs(change, knobs, "DEPLA")
    hosts.add_change(model, "depla", change, "DEPLA", resnet)
    return change


def _know_padding(model: DictConfig, spec: DictConfig) -> DictConfig:
    """`model`, made to tell DEPLA what is padding where it asks for it."""
    target = hosts.target_of(model)
    if spec.mask_padding and target is GeneralizedRCNN:
        model._target_ = PaddingMaskRCNN
    elif spec.mask_padding and not issubclass(target, PaddingMaskRCNN):
        hosts.refuse_mask_padding(target.__name__)
    return model


def with_depla_fpn(model: DictConfig, **knobs: Any) -> DictConfig:
    """DEPLA between the levels of the host's feature pyramid; the paper's T = 0.5. knobs: of `DEPLASpec`."""
    model = hosts.copy_of(model)
    fpn = hosts.require_fpn(model, "DEPLA in FPN")
    if hosts.target_of(fpn) is DEPLAFPN:
        raise UserError("The model has DEPLA in its FPN already.")
    spec = hosts.project_node(SITES, "fpn_depla")
    hosts.set_knobs(spec, knobs, "DEPLA in FPN")
    fpn._target_ = DEPLAFPN
    fpn.depla = spec
    return _know_padding(model, spec)


def with_fishnet(model: DictConfig, **knobs: Any) -> DictConfig:
    """FishNet-150 in the place of the host's backbone, below its feature pyramid, nothing frozen.

    knobs: of `FishNet`. It is as much narrower as the host's ResNet. Its norm is the host's; in place of a frozen
    one SyncBN, as in the paper's detectors. Weights of the host's backbone do not fit: see `combine_config`.
    """
    model = hosts.copy_of(model)
    node = hosts.project_node("DEPLA/configs/common/depla_fishnet.py", "backbone")
    node.aggregation = None
    old = hosts.bottom_up_of(model)
    node.width //= hosts.narrowness(hosts.built(old))
    node.norm = hosts.trained_norm(old, node.norm)
    hosts.set_knobs(node, knobs, "FishNet")
    hosts.replace_bottom_up(model, node, FEATURES, "FishNet")
    return model


def with_depla_fishnet(model: DictConfig, **knobs: Any) -> DictConfig:
    """FishNet with DEPLA in its UR and DR blocks, as `with_fishnet`; knobs: of `FishNet`, aggregation's in a dict."""
    depla = knobs.pop("aggregation", {})
    return with_depla(with_fishnet(model, **knobs), **depla)


def with_se_resnet(model: DictConfig, **knobs: Any) -> DictConfig:
    """Squeeze-and-excitation in every bottleneck block of the host's ResNet. knobs: ratio, start.

    Weights and freezing of the host's layers stay the host's; gates train in frozen stages, too. They start near one,
    so that pretrained features stay: SE-ResNet's own random start would halve them.
    """
    model = hosts.copy_of(model)
    resnet = hosts.require_resnet(model, "Squeeze-and-excitation")
    change = L(SEInResNet)(ratio=RATIO)
    hosts.set_knobs(change, knobs, "Squeeze-and-excitation")
    hosts.add_change(model, "se", change, "Squeeze-and-excitation", resnet)
    return model


@dataclass(frozen=True)
class DEPLAInResNet(DEPLASpec, ResNetChange):
    """DEPLA in `blocks` of `stage`, as in `depla_resnet`; layers of the blocks stay."""

    stage: str = "res4"
    blocks: Sequence[int] = LAST_THREE

    def change(self, resnet: ResNet) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {self.stage!r}")
        blocks = getattr(resnet, self.stage, ())
        for index in block_indices(self.blocks, len(blocks)):
            block = blocks[index]
            if getattr(block, "depla", None) is not None:
                raise ValueError(f"{self.stage}'s block {index} has DEPLA already")
            if not isinstance(block, DEPLAPieces):
                add_method(block, DEPLAPieces)
            block.depla = self(block.out_channels, block.out_channels)


@dataclass(frozen=True)
class SEInResNet(ResNetChange):
    """A gate in every block, of the value `start` for all channels at first; layers of the blocks stay."""

    ratio: int = RATIO
    start: float = 0.95

    def change(self, resnet: ResNet) -> None:
        if not 0 < self.start < 1:
            raise ValueError(f"a gate's start must be between 0 and 1, got {self.start}")
        for name, stage in zip(resnet.stage_names, resnet.stages):
            for block in stage:
                if getattr(block, "se", None) is not None:
                    raise ValueError(f"{name} has a gate already")
                if not isinstance(block, SEPieces):
                    add_method(block, SEPieces)
                block.se = SEGate(block.out_channels, self.ratio)
                nn.init.zeros_(block.se.expand.weight)
                nn.init.constant_(block.se.expand.bias, log(self.start / (1 - self.start)))
