"""ResNet-101 on ImageNet, 100 epochs with a cosine."""

from .resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.stages.depth = 101
