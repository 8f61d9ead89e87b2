"""FCOS, R-50-FPN, 1x: the baseline. The other fcos configs state what they change."""

from ..common.data.coco import dataloader
from ..common.models.fcos import model
from ..common.optim import SGD as optimizer
from ..common.schedule import steps as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.freeze_at = 2  # stem and res2
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90_000  # 12 epochs: 90k x 16 images / 118k
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
