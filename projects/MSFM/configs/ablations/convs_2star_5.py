"""Table 2, Conv num: 2*, 5: two where the scale is above 1, else one."""

from .convs_2_5 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.conv_num_small = 1
