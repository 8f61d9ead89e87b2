"""The quickstart with a small RetinaNet: the plain host of methods for dense detectors."""

from .common.models.retinanet_small import model
from .quickstart import dataloader, lr_multiplier, optimizer, train

train.output_dir = "./output/quickstart_retinanet"
