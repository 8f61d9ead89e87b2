"""A small Faster R-CNN with MSFM on the digit scenes, from nothing, on a CPU.

Its plain twin is configs/quickstart_bottleneck.py.
"""

from projects.MSFM import MSFMBottleneckBlock

from ....configs.quickstart_bottleneck import dataloader, lr_multiplier, model, optimizer, train
from .common.quick import msfm

for stage, name in zip(model.backbone.bottom_up.stages[1:], ("res3", "res4", "res5")):
    stage.update(block_class=MSFMBottleneckBlock, msfm="${..1.msfm}", stage=name)
model.backbone.bottom_up.stages[1].msfm = msfm  # and so the others'
train.output_dir = "./output/msfm_quick"
del msfm, name, stage  # a config's variables are its keys
