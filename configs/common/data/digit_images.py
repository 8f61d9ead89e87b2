"""scikit-learn's handwritten digits, 8 x 8 pixels enlarged to 32 x 32; nothing is downloaded."""

from torchvision.transforms import v2

from detectron2.config import LazyCall as L
from shared.classification import register_digit_images

from .imagenet import dataloader

dataloader.train.dataset.names = L(register_digit_images)(split="train")
# no flips: a mirrored digit is another sign
dataloader.train.mapper.transforms = [
    L(v2.Resize)(size=32),
    L(v2.RandomAffine)(degrees=10, translate=[0.1, 0.1], scale=[0.9, 1.1]),
]
dataloader.train.total_batch_size = 64
dataloader.train.num_workers = 1
dataloader.test.dataset.names = L(register_digit_images)(split="val")
dataloader.test.mapper.transforms = [L(v2.Resize)(size=32)]
dataloader.test.batch_size = 64
dataloader.test.num_workers = 1
