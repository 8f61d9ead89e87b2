"""ResNet-50-DEPLA on ImageNet with C' = 128, standard recipe: the reading that comes near the paper's FLOPs."""

from .depla_resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.mid_channels = 128
