"""DenseNet-121 on ImageNet: the plain host of LIP-DenseNet-121. The official repository: 75.62 top-1."""

from .lip_densenet121_imagenet_90e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.sites = []
