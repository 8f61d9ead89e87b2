"""Mask R-CNN, R-50-FPN, as the paper's framework trains it: the baseline of Table 4."""

from ....configs.common.models.mask_rcnn_fpn import model
from .common.detection import dataloader, lr_multiplier, optimizer, pixels, train

model.update(pixels)
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2  # stem and res2
train.init_checkpoint = "resnet50-0676ba61.pth"  # torchvision's ResNet-50, IMAGENET1K_V1
del pixels  # a config's variables are its keys
