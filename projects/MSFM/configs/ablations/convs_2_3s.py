"""Table 2, Conv num: 2, 3S."""

from .groups_32 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.conv_num = 2
