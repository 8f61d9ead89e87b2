"""A small RetinaNet on the digit scenes, from nothing, on a CPU: the plain host of the quick configs, 1x.

configs/quickstart_retinanet.py with the paper's kind of schedule; 360 steps are "1x".
"""

from ....configs.common.schedule import steps as lr_multiplier
from ....configs.quickstart_retinanet import dataloader, model, optimizer, train

lr_multiplier.update(warmup_iters=30, warmup_factor=0.01)
train.max_iter = 360
train.output_dir = "./output/labelenc/retinanet_quick_1x"
