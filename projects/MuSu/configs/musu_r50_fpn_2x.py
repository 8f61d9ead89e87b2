"""MuSu, R-50-FPN, 2x."""

from .musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 180_000
