"""SEResNet-101-DEPLA on ImageNet, better recipe: Table 1, 82.1 top-1."""

from .depla_seresnet50_imagenet_400e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101
