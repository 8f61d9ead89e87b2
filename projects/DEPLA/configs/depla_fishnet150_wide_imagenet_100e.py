"""FishNet150-DEPLA on ImageNet with C' = 128: the reading that comes near the paper's FLOPs."""

from .depla_fishnet150_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.aggregation.mid_channels = 128
