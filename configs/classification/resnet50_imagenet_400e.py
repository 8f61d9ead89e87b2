"""ResNet-50 on ImageNet, 400 epochs: the better recipe of the DEPLA paper.

Cosine after a linear warm-up from 0 over 5 epochs, AutoAugment (arXiv:1805.09501), mixup (arXiv:1710.09412), label
smoothing 0.1. The share of mixup, Beta(0.2, 0.2), is not in the paper: it is that of mixup's own ImageNet training.
"""

from fvcore.common.param_scheduler import CosineParamScheduler
from torchvision.transforms import v2

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from shared.classification import MixBatch

from .resnet50_imagenet_100e import dataloader, model, optimizer, train

dataloader.train.mapper.transforms.append(L(v2.AutoAugment)())  # its default is the policy for ImageNet
dataloader.train.collate_fn = L(MixBatch)(mixes=[L(v2.MixUp)(alpha=0.2, num_classes="${model.num_classes}")])
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=0.0,
    warmup_length=5 / 400,  # of train.max_iter
    warmup_method="linear",
)
train.max_iter = 400 * 5004
