"""MuSu, R-50-FPN, 1x: the baseline. The other configs of this project state what they change."""

from .common.model import model
from .common.training import dataloader, lr_multiplier, optimizer, train
