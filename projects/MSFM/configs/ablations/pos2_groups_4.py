"""Table 2, Norm group: 4 at position 2."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.positions = [2]
