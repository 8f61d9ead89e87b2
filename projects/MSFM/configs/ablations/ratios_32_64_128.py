"""Table 2, Ratios: 32, 64, 128 at position 3."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.ratios = [32, 64, 128]
