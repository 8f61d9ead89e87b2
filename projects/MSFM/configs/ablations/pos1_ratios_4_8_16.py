"""Table 2, Ratios: 4, 8, 16 at position 1."""

from .pos1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.ratios = [4, 8, 16]
