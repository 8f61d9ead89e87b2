"""LIP-ResNet-101 on ImageNet. The official repository: 79.33 top-1, ResNet-101 77.98."""

from .lip_resnet50_imagenet_90e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101
