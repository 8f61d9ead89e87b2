"""FishNet-150 on ImageNet, standard recipe. Its repository: 78.14 top-1 with a schedule in steps."""

from .depla_fishnet150_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.aggregation = None
