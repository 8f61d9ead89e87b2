"""InterNet, R-101-FPN, short side 800: Table 1 (b); the figures of Tables 1, 2d and 2e look like this size's."""

from .common.size_800 import dataloader, lr_multiplier, optimizer, train
from .internet_r101_fpn_512 import model

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
