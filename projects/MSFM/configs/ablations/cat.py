"""Table 2, Fusion type: cat at position 3."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.fusion = "cat"
