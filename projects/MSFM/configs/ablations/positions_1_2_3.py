"""Table 3: positions 1, 2, 3."""

from ..faster_rcnn_msfm_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.msfm.positions = [1, 2, 3]
