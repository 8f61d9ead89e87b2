"""ResNet-101 on ImageNet, 90 epochs in steps. The LIP paper: 77.98 top-1."""

from .resnet50_imagenet_90e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.stages.depth = 101
