"""R-101-FPN baseline at 800 px (ours: the paper gives none)."""

from .internet_r101_fpn_800 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.update(makeup=None, critic=None, intertwiner=None)
model.roi_heads.box_head.fusion = "separate"
