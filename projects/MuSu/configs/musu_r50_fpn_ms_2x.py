"""MuSu, R-50-FPN, 2x, multi-scale training."""

from .common.model import model
from .common.multi_scale import dataloader, lr_multiplier, optimizer, train
