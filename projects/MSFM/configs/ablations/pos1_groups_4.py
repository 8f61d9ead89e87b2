"""Table 2, Norm group: 4 at position 1."""

from .pos1 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.norm_groups = [4, 4, 16]
