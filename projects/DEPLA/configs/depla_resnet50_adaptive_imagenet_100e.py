"""ResNet-50-DEPLA with the adaptive back-filling network: Table 3, 78.8 top-1."""

from .depla_resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.back_filling = "adaptive"
