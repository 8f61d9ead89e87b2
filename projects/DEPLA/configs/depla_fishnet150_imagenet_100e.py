"""FishNet150-DEPLA on ImageNet, standard recipe: the start of Table 5's detectors. Its top-1 is not reported."""

from ....configs.classification.resnet50_imagenet_100e import dataloader, lr_multiplier, model, optimizer, train
from .common.depla_fishnet import backbone

model.backbone = backbone
model.in_feature = "final"
del backbone  # a config's variables are its keys
