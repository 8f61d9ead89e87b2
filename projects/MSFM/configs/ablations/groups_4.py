"""Table 2, Norm group: 4 at position 3."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.norm_groups = [8, 4, 4]
