"""A narrow FishNet-99 with DEPLA and FPN on the digit scenes, from nothing, on a CPU."""

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train
from .common.depla_fishnet import backbone

model.backbone.bottom_up = backbone
model.backbone.bottom_up.update(depth=99, width=16, out_features=["fish2", "fish3", "fish4", "fish5"])
train.output_dir = "./output/depla_fishnet_quick"
del backbone  # a config's variables are its keys
