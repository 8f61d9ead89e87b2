"""Table 2, Ratios: 8, 16, 32 at position 3."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.ratios = [8, 16, 32]
