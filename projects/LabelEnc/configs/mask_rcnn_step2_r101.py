"""Mask R-CNN, R-101-FPN, step 2 after mask_rcnn_step1_r50.py."""

from projects.LabelEnc import LabelEncGeneralizedRCNN, LabelMaskMapper

from .common.step2 import label_enc as _label_enc
from .mask_rcnn_r101_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncGeneralizedRCNN, label_enc=_label_enc)
model.label_enc.step1_weights = "output/labelenc/mask_rcnn_step1_r50/label_encoder.pth"
model.label_enc.source = "mask"
dataloader.train.mapper._target_ = LabelMaskMapper
train.output_dir = "./output/labelenc/mask_rcnn_step2_r101"
