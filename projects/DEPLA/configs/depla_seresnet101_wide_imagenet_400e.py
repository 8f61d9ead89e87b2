"""SEResNet-101-DEPLA on ImageNet with C' = 128, better recipe: the reading that comes near the paper's FLOPs."""

from .depla_seresnet101_imagenet_400e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.mid_channels = 128
