"""ResNet-20 on CIFAR-10, 200 epochs: SGD 0.1 with drops after 100 and 150, batches of 128, crops and flips."""

from ..common.data.cifar10 import dataloader
from ..common.models.classifier_cifar_resnet import model
from ..common.optim import SGD as optimizer
from ..common.schedule import steps as lr_multiplier
from ..common.train import train

optimizer.lr = 0.1
optimizer.weight_decay = 1e-4
optimizer.params.weight_decay_norm = None  # norms decay like everything else
lr_multiplier.update(drops=[0.5, 0.75], warmup_iters=0)

train.max_iter = 200 * 391  # 50,000 images / 128 = 391 an epoch
train.eval_period = 10 * 391
train.checkpointer.period = 50 * 391
