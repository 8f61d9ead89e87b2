"""LIP and MSFM in one small ResNet, DEPLA in FPN and InterNet in the RoI heads, on the digit scenes, on a CPU."""

from projects.combine import combine

from ..quickstart_bottleneck import dataloader, lr_multiplier, model, optimizer, train

model = combine(model, "lip", "msfm", "depla_fpn", "internet")
train.output_dir = "./output/combined/faster_rcnn_quick"
