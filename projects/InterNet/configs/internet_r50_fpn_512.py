"""InterNet, R-50-FPN, long side 512: the bold row of Table 2 (a: default, b: l2, c: linear), source (b) of Table 1.

Every knob stands in common/model.py and common/training.py; the other configs of this project state what they change.
"""

from .common.model import model
from .common.training import dataloader, lr_multiplier, optimizer, train
