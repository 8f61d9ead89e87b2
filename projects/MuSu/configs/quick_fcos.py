"""Baseline: Detectron2's FCOS with the backbone, towers and training of quick.py."""

from ....configs.common.models.fcos import model
from .common.small import backbone, dataloader, head, lr_multiplier, optimizer, pixel_std, train

model.backbone, model.pixel_std = backbone, pixel_std
model.head.update(head)
model.num_classes = 10
del backbone, head, pixel_std  # a config's variables are its keys
train.output_dir = "./output/musu_quick_fcos"
