"""FCOS, R-101-FPN, modulated deformable in c3-c5, 1x."""

from .common.modulated_dcn import stages as _stages
from .fcos_r101_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = _stages
train.output_dir = "./output/labelenc/fcos_r101_dcn_fpn_1x"
