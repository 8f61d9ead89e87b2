"""Cascade R-CNN, R-101-FPN, 24 epochs, multi-scale: the plain twin of the paper's large model.

Ours, as the paper gives none: short sides 640 to 800, drops after 16 and 22 epochs, tested at 800.
"""

from .cascade_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "resnet101-63fe2227.pth"  # torchvision's ResNet-101, IMAGENET1K_V1
train.max_iter = 24 * 7330  # 117,266 images with objects / 16
lr_multiplier.drops = [16 / 24, 22 / 24]
dataloader.train.mapper.augmentations[0].update(short_edge_length=(640, 800), sample_style="range")
