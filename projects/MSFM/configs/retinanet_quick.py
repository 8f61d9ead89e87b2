"""A small RetinaNet on the digit scenes, from nothing, on a CPU: the plain twin of retinanet_msfm_quick.py.

configs/quickstart_retinanet.py with the bottleneck ResNet of configs/quickstart_bottleneck.py.
"""

from ....configs.quickstart_bottleneck import model as _bottleneck
from ....configs.quickstart_retinanet import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = _bottleneck.backbone.bottom_up.stages
model.backbone.top_block.in_channels = 512
train.output_dir = "./output/retinanet_quick"
