"""Mask R-CNN with DEPLA in ResNet-50 and in FPN. Not in the paper."""

from .common.depla_resnet import backbone
from .mask_rcnn_r50_depla_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = backbone
model.backbone.bottom_up.update(norm="FrozenBN", out_features=["res2", "res3", "res4", "res5"], freeze_at=2)
train.init_checkpoint = "depla_resnet50.pth"  # model_final.pth of depla_resnet50_imagenet_100e.py
del backbone  # a config's variables are its keys
