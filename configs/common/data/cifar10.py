"""CIFAR-10 from local files: crops of the image padded by 4 pixels and flips (arXiv:1512.03385, sec. 4.2).

`cifar-10-batches-py` lies in $DETECTRON2_DATASETS.
"""

from torchvision.transforms import v2

from detectron2.config import LazyCall as L
from shared.classification import register_cifar10

from .imagenet import dataloader

dataloader.train.dataset.names = L(register_cifar10)(split="train", root=".")
dataloader.train.mapper.transforms = [L(v2.RandomCrop)(size=32, padding=4), L(v2.RandomHorizontalFlip)(p=0.5)]
dataloader.train.total_batch_size = 128
dataloader.train.num_workers = 4
dataloader.test.dataset.names = L(register_cifar10)(split="test", root=".")
dataloader.test.mapper.transforms = []
dataloader.test.batch_size = 128
dataloader.test.num_workers = 2
