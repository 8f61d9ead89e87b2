"""ResNet-50-DEPLA on ImageNet, better recipe: Table 1, 80.6 top-1."""

from ....configs.classification.resnet50_imagenet_400e import dataloader, lr_multiplier, model, optimizer, train
from .common.depla_resnet import backbone

model.backbone = backbone
del backbone  # a config's variables are its keys
