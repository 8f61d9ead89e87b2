"""Small modules and networks for the tests."""

from functools import cache

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detectron2.modeling.backbone import BasicStem, ResNet
from projects.MSFM import MSFM, MSFMSpec, count, make_msfm_stages
from shared.modeling.resnet import resnet_stages

ALL = ["res2", "res3", "res4", "res5"]
CHANNELS, RATIO, GROUPS = 24, 3, 4  # 8 thin channels, 2 a group
NARROW = {"res2_channels": 64, "width_per_group": 16, "norm": "BN"}  # C = 128, 256, 512 at position 3
NARROW_RATIOS = (4, 8, 16)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """All norms' scales and all biases random, no longer the identity."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() == 1:
                p.copy_(torch.randn(p.shape, generator=rng))
    return module


def make_msfm(seed=0, channels=CHANNELS, ratio=RATIO, groups=GROUPS, **spec) -> MSFM:
    """In float64, randomised."""
    torch.manual_seed(seed)
    return randomised(MSFM(channels, ratio=ratio, norm_groups=groups, spec=MSFMSpec(**spec))).double()


def make_x(height=7, width=10, n=2, channels=CHANNELS, seed=1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=rng, dtype=torch.float64)


def narrow_resnet(with_msfm=True, freeze_at=0, seed=3, **spec) -> ResNet:
    """ResNet-50 with a quarter of its width; 32 thin channels at position 3, 8 at 1 and 2, as the paper's."""
    torch.manual_seed(seed)
    stem = BasicStem(norm="BN")
    if with_msfm:
        stages = make_msfm_stages(50, msfm=MSFMSpec(**{"ratios": NARROW_RATIOS, **spec}), **NARROW)
    else:
        stages = resnet_stages(50, stride_in_1x1=False, **NARROW)
    return ResNet(stem, stages, out_features=ALL, freeze_at=freeze_at)


@cache
def loaded(name: str) -> DictConfig:
    """A config by its name in projects.MSFM.count, to be read only: loading all takes seconds."""
    return count.load(name)
