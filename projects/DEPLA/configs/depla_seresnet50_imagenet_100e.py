"""SEResNet-50-DEPLA on ImageNet, standard recipe: Table 2, 79.1 top-1."""

from .depla_resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.se_ratio = 16
