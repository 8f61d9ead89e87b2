"""Table 2, Norm group: 8 at position 2."""

from .pos2_groups_4 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.norm_groups = [8, 8, 16]
