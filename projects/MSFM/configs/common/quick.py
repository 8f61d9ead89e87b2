"""MSFM for the narrow bottleneck ResNet of configs/quickstart_bottleneck.py: thin maps as wide as the paper's."""

from .msfm import stages

msfm = stages.msfm
msfm.ratios = [4, 8, 16]  # 32 thin channels at position 3, 8 at position 2
del stages
