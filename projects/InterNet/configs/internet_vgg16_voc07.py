"""InterNet, Table 5: VGG-16 with SSD's layers on VOC 07, images of at most 512 px.

Start from ImageNet: `convert_torchvision_vgg16` (backbones.py) makes the file for train.init_checkpoint.
"""

from detectron2.config import LazyCall as L
from projects.InterNet.backbones import VGG16SSD

from ....configs.common.data.constants import constants
from .common.training_voc import train
from .internet_r101_levels_voc0712 import dataloader, lr_multiplier, model, optimizer

model.backbone.update(
    bottom_up=L(VGG16SSD)(out_features=["conv7", "conv8_2", "conv9_2", "conv10_2"], freeze_at=2),
    in_features="${.bottom_up.out_features}",
)
strides = [16, 32, 64, 128]
model.proposal_generator.anchor_generator.strides = strides
model.roi_heads.box_pooler.scales = [1 / s for s in strides]
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
dataloader.train.mapper.image_format = "RGB"
del strides, constants
dataloader.train.dataset.names = "voc_2007_trainval"
dataloader.train.mapper.augmentations[0].update(short_edge_length=512, max_size=512)
dataloader.test.mapper.augmentations[0].update(short_edge_length=512, max_size=512)
train.init_checkpoint = ""
train.max_iter = 8_150  # 13 epochs of 5,011 images
