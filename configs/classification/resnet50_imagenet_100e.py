"""ResNet-50 on ImageNet, 100 epochs with a cosine: the standard recipe of the DEPLA paper.

The paper gives epochs, cosine and label smoothing. Learning rate 0.2 for 256 images and weight decay 5e-5 on all
parameters are those of the reference that it names (pycls' ResNet-50 of DDS); smoothing by 0.1 is ours.
"""

from ..common.schedule import cosine as lr_multiplier
from .resnet50_imagenet_90e import dataloader, model, optimizer, train

model.label_smoothing = 0.1
optimizer.lr = 0.2
optimizer.weight_decay = 5e-5
lr_multiplier.warmup_iters = 0
train.max_iter = 100 * 5004
