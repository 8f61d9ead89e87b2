"""MuSu, R-101-FPN, deformable in c3-c5, 2x."""

from ....configs.common.models.resnet_dcn import stages as _stages
from .musu_r101_fpn_2x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = _stages
model.backbone.bottom_up.stages.depth = 101
