"""ResNet-20 on CIFAR-10 with OT between its stages (Sec. 6.3, about 1.3 points of error in the paper's network)."""

from projects.InterNet import StageAlignedClassifier

from ....configs.classification.cifar10_resnet20 import dataloader, lr_multiplier, model, optimizer, train
from .common.stages import transport

model._target_ = StageAlignedClassifier
model.backbone.out_features = ["res2", "res3", "res4"]
model.transport = transport
del transport
