"""ResNet-50-DEPLA on ImageNet, standard recipe: Tables 2 and 3, 78.6 top-1. Others say what they change."""

from ....configs.classification.resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train
from .common.depla_resnet import backbone

model.backbone = backbone
del backbone  # a config's variables are its keys
