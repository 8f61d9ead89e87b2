"""RepPoints, R-50-FPN, 1x: the baseline. The other reppoints configs state what they change."""

from ....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, train
from .common.reppoints import model

optimizer.lr = 0.01
