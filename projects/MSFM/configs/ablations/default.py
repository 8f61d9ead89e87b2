"""The setting that the rows of Table 2 vary: position 3, scales 3S, ratios 16, 32, 64, 16 groups, one convolution."""

from ..faster_rcnn_msfm_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.update(positions=[3], scales=[0.5, 0.7, 1.0], norm_groups=[8, 4, 16], conv_num=1)
