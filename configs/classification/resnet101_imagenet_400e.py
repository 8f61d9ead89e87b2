"""ResNet-101 on ImageNet, 400 epochs, the better recipe."""

from .resnet50_imagenet_400e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.stages.depth = 101
