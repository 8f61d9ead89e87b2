"""SEResNet-50-DEPLA on ImageNet, better recipe: Table 1, 81.3 top-1."""

from .depla_resnet50_imagenet_400e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.se_ratio = 16
