"""ResNet-56 on CIFAR-10 with OT between its stages."""

from .cifar10_resnet20_ot import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 56
