"""Registry and builder of whole models."""

import torch
from torch import nn

from detectron2.utils.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")


def build_model(cfg) -> nn.Module:
    """The registered `cfg.MODEL.META_ARCHITECTURE` on `cfg.MODEL.DEVICE`, without its weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
