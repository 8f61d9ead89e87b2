"""ResNet-50-DEPLA that keeps the residual sum. Not in the paper: the other reading of its Figure 6."""

from .depla_resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depla.keep_sum = True
