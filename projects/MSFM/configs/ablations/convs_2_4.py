"""Table 2, Conv num: 2, 4."""

from .scales_4 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.norm_groups = [8, 4, 32]
model.backbone.bottom_up.stages.msfm.conv_num = 2
