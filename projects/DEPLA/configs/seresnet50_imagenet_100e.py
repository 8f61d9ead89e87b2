"""SEResNet-50 on ImageNet, standard recipe: Table 2, 77.5 top-1."""

from .depla_seresnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla = None
