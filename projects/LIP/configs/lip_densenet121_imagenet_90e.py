"""LIP-DenseNet-121 on ImageNet. The official repository: 76.64 top-1, DenseNet-121 75.62."""

from ....configs.classification.resnet50_imagenet_90e import dataloader, lr_multiplier, model, optimizer, train
from .common.lip_densenet import bottom_up

model.backbone = bottom_up
model.backbone.update(norm="BN", out_features=["dense5"], freeze_at=0)
model.in_feature = "dense5"
del bottom_up
