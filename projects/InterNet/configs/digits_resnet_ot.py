"""ResNet-8 on scikit-learn's digits with OT between its stages: a minute or two on a CPU."""

from projects.InterNet import StageAlignedClassifier

from ....configs.classification.digits_resnet import dataloader, lr_multiplier, model, optimizer, train
from .common.stages import transport

model._target_ = StageAlignedClassifier
model.backbone.out_features = ["res2", "res3", "res4"]
model.transport = transport
del transport
train.output_dir = "./output/digits_resnet_ot"
