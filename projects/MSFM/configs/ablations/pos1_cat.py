"""Table 2, Fusion type: cat at position 1."""

from .pos1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.fusion = "cat"
