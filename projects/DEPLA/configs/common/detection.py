"""Training of the paper's detectors on COCO: its framework's defaults (mmdetection), 12 epochs of 16 images."""

from .....configs.common.data.coco import dataloader
from .....configs.common.data.constants import constants
from .....configs.common.optim import SGD as optimizer
from .....configs.common.schedule import steps as lr_multiplier
from .....configs.common.train import train

for resize in (dataloader.train.mapper.augmentations[0], dataloader.test.mapper.augmentations[0]):
    resize.update(short_edge_length=800, max_size=1333)
del resize
dataloader.train.mapper.image_format = "RGB"
pixels = dict(pixel_mean=constants.imagenet_rgb256_mean, pixel_std=constants.imagenet_rgb256_std, input_format="RGB")
train.max_iter = 12 * 7330  # 117,266 images with objects / 16
lr_multiplier.update(drops=[8 / 12, 11 / 12], warmup_iters=500)
