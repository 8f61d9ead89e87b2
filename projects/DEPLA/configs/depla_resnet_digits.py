"""A small DEPLA-ResNet on scikit-learn's handwritten digits, from nothing, on a CPU."""

from projects.DEPLA.resnet import DEPLABottleneckBlock

from ....configs.classification.digits_resnet_bottleneck import dataloader, lr_multiplier, model, optimizer, train
from .common.sites import backbone_depla

model.backbone.stages[2].update(block_class=DEPLABottleneckBlock, depla=backbone_depla)  # res4
train.output_dir = "./output/depla_digits"
del backbone_depla  # a config's variables are its keys
