"""FCOS, R-101-FPN, modulated deformable in c3-c5, 2x."""

from .fcos_r101_dcn_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
train.output_dir = "./output/labelenc/fcos_r101_dcn_fpn_2x"
