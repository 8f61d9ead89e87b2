"""A small RetinaNet with MSFM on the digit scenes, from nothing, on a CPU."""

from projects.MSFM import MSFMBottleneckBlock

from .common.quick import msfm
from .retinanet_quick import dataloader, lr_multiplier, model, optimizer, train

for stage, name in zip(model.backbone.bottom_up.stages[1:], ("res3", "res4", "res5")):
    stage.update(block_class=MSFMBottleneckBlock, msfm="${..1.msfm}", stage=name)
model.backbone.bottom_up.stages[1].msfm = msfm  # and so the others'
train.output_dir = "./output/retinanet_msfm_quick"
del msfm, name, stage  # a config's variables are its keys
