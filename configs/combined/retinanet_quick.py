"""MSFM in a small ResNet and MuSu as the dense head on the digit scenes, on a CPU."""

from projects.combine import combine

from ...projects.MSFM.configs.retinanet_quick import dataloader, lr_multiplier, model, optimizer, train

model = combine(model, "msfm", "musu")
train.output_dir = "./output/combined/retinanet_quick"
