"""ResNet-50 on ImageNet, 90 epochs in steps: the baseline that the LIP paper trains (arXiv:1908.04156).

SGD with momentum 0.9, learning rate 0.1 for 256 images, a tenth of it after 30, 60 and 80 epochs, weight decay 1e-4
on all parameters, no warm-up, no label smoothing. The paper: 76.40 top-1.
"""

from ..common.data.imagenet import dataloader
from ..common.models.classifier_resnet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import steps as lr_multiplier
from ..common.train import train

optimizer.lr = 0.1
optimizer.weight_decay = 1e-4
optimizer.params.weight_decay_norm = None  # norms decay like everything else
lr_multiplier.update(drops=[30 / 90, 60 / 90, 80 / 90], warmup_iters=0)

train.max_iter = 90 * 5004  # 1,281,167 images / 256 = 5004 an epoch
train.eval_period = 5004
train.checkpointer.period = 5004
train.checkpointer.max_to_keep = 3
train.cudnn_benchmark = True
