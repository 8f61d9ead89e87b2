"""MSFM as a function of a LazyConfig model: in the bottleneck blocks of its ResNet."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from projects import hosts
from shared.modeling.bottleneck import add_method
from shared.modeling.changed_resnet import ResNetChange

from .resnet import MSFMPieces
from .spec import MSFMSpec


def with_msfm(model: DictConfig, **knobs: Any) -> DictConfig:
    """MSFM in the paper's final setting in every block of res3, res4 and res5 of the host's ResNet.

    knobs: of `MSFMSpec`. In a narrower ResNet the ratios are as much smaller: thin maps stay as wide as the paper's.
    """
    model = hosts.copy_of(model)
    resnet = hosts.require_resnet(model, "MSFM")
    narrow = hosts.narrowness(resnet)
    spec = hosts.project_node("MSFM/configs/common/msfm.py", "stages").msfm
    spec.ratios = [max(1, ratio // narrow) for ratio in spec.ratios]
    change = L(MSFMInResNet)(**{key: value for key, value in spec.items() if key != "_target_"})
    hosts.set_knobs(change, knobs, "MSFM")
    hosts.add_change(model, "msfm", change, "MSFM", resnet)
    return model


@dataclass(frozen=True)
class MSFMInResNet(MSFMSpec, ResNetChange):
    """The stages' blocks get modules; their own layers stay."""

    def change(self, resnet: ResNet) -> None:
        for stage in self.stages:
            for block in getattr(resnet, stage, ()):  # stages that nothing reads are not built
                add_method(block, MSFMPieces)
                block.insert(self, stage)
