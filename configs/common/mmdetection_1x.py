"""Training on COCO as mmdetection's 1x schedules do it: torchvision's ResNet, RGB, 12 epochs of 16 images.

`pixels` updates a model that reads torchvision's weights.
"""

from .data.coco import dataloader
from .data.constants import constants
from .optim import SGD as optimizer
from .schedule import steps as lr_multiplier
from .train import train

for resize in (dataloader.train.mapper.augmentations[0], dataloader.test.mapper.augmentations[0]):
    resize.update(short_edge_length=800, max_size=1333)
del resize
dataloader.train.mapper.update(image_format="RGB", use_instance_mask=False)
pixels = dict(pixel_mean=constants.imagenet_rgb256_mean, pixel_std=constants.imagenet_rgb256_std, input_format="RGB")
optimizer.params.weight_decay_norm = 1e-4  # there norms decay as everything else
train.init_checkpoint = "resnet50-0676ba61.pth"  # torchvision's ResNet-50, IMAGENET1K_V1
train.max_iter = 12 * 7330  # 117,266 images with objects / 16
lr_multiplier.update(drops=[8 / 12, 11 / 12], warmup_iters=500)
