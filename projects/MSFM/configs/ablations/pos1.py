"""Table 2, position 1 with 8 groups: in Ratios, Norm group and Fusion type."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.positions = [1]
