"""A narrow FishNet-99 with DEPLA on scikit-learn's handwritten digits, from nothing, on a CPU."""

from ....configs.classification.digits_resnet import dataloader, lr_multiplier, model, optimizer, train
from .common.depla_fishnet import backbone

model.backbone = backbone
model.backbone.update(depth=99, width=16)
model.in_feature = "final"
train.output_dir = "./output/depla_fishnet_digits"
del backbone  # a config's variables are its keys
