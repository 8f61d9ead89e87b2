"""RepPoints, R-50-FPN, 12 epochs, with MSFM at positions 2 and 3: Table 4."""

from ...Detectors.configs.reppoints_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train
from .common.msfm import stages

model.backbone.bottom_up.stages = stages
del stages  # a config's variables are its keys
