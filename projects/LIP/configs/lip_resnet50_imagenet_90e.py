"""LIP-ResNet-50 (Bottleneck-128) on ImageNet, 90 epochs in steps, as configs/classification/resnet50_imagenet_90e.py.

The official recipe and repository: 78.19 top-1, ResNet-50 76.40.
"""

from ....configs.classification.resnet50_imagenet_90e import dataloader, lr_multiplier, model, optimizer, train
from .common.lip_resnet import bottom_up

model.backbone = bottom_up
model.backbone.update(norm="BN", zero_init_residual=True, out_features=["res5"], freeze_at=0)
del bottom_up
