"""COCO, 12 epochs at batch 16, short side 800: the settings of ATSS (arXiv:1912.02424)."""

from .....configs.common.data.coco import dataloader
from .....configs.common.optim import SGD as optimizer
from .....configs.common.schedule import steps as lr_multiplier
from .....configs.common.train import train

dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.augmentations[0].short_edge_length = [800]
optimizer.lr = 0.01
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90_000
