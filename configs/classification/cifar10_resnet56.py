"""ResNet-56 on CIFAR-10, 200 epochs."""

from .cifar10_resnet20 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 56
