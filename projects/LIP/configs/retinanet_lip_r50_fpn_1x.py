"""RetinaNet, LIP-R-50-FPN, 1x. Not in the paper."""

from ....configs.baselines.retinanet_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train
from ....configs.common.data.constants import constants
from .common.lip_resnet import bottom_up

model.backbone.bottom_up = bottom_up
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = "lip_resnet50.pth"  # made by tools/convert_lip_checkpoint.py
del bottom_up, constants
