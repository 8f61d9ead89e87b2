"""A small Faster R-CNN with a LIP-ResNet on the digit scenes, from nothing, on a CPU.

configs/quickstart_bottleneck.py with Bottleneck-32 at all seven sites.
"""

from detectron2.config import LazyCall as L
from projects.LIP.pooling import Pooling
from projects.LIP.resnet import LIPBottleneckBlock, LIPStem

from ....configs.quickstart_bottleneck import dataloader, lr_multiplier, model, optimizer, train

resnet = model.backbone.bottom_up
resnet.stem = L(LIPStem)(
    in_channels=3,
    out_channels=32,
    norm="BN",
    pooling=L(Pooling)(kind="lip", logit="bottleneck", width=32, gate=12.0, init="zero_conv"),
)
for stage in resnet.stages[1:]:
    stage.update(block_class=LIPBottleneckBlock, pooling="${...stem.pooling}")
train.output_dir = "./output/lip_quick"
del resnet, stage  # a config's variables are its keys
