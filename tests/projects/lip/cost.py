"""Size of a classifier as the LIP repository's tables count it."""

import logging

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

ROUNDED = 5.1e-4  # tables give three decimals


def cost(net: nn.Module) -> tuple[int, float, float]:
    """Parameters; G multiply-adds of convolutions and classifier, and of norms besides, for one 224 x 224 image."""
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)  # operators that count nothing
    with torch.no_grad():
        counts = FlopCountAnalysis(net.eval(), torch.zeros(1, 3, 224, 224)).by_operator()
    parameters = sum(p.numel() for p in net.parameters())
    return parameters, (counts["conv"] + counts["linear"]) / 1e9, counts.total() / 1e9
