"""The paper's training (sec. 4.1): one scale, 16 images a step, 1x; what it leaves open as in its released code.

`model` files add the rest.
"""

from .....configs.common.data.coco import dataloader
from .....configs.common.optim import SGD as optimizer
from .....configs.common.schedule import steps as lr_multiplier
from .....configs.common.train import train

dataloader.train.mapper.augmentations[0].short_edge_length = [800]
dataloader.train.mapper.use_instance_mask = False
# the released code's: biases at twice the rate and without decay
optimizer.params.update(base_lr="${..lr}", bias_lr_factor=2.0, weight_decay_bias=0.0)
lr_multiplier.update(warmup_iters=500, warmup_factor=1 / 3)
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90_000
