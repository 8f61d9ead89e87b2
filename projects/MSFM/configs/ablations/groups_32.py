"""Table 2, Norm group: 32 at position 3, and Conv num: 1, 3S."""

from .default import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.norm_groups = [8, 4, 32]
