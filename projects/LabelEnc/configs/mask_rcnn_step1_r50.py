"""Mask R-CNN, step 1 R-50-FPN: the label encoder, and the head that every step 2 of this host starts from."""

from projects.LabelEnc import LabelEncGeneralizedRCNN, LabelMaskMapper

from .common.step1 import label_enc as _label_enc
from .common.step1 import lr_multiplier, train
from .mask_rcnn_r50_fpn_1x import dataloader, model, optimizer

model.update(_target_=LabelEncGeneralizedRCNN, label_enc=_label_enc)
model.label_enc.source = "mask"
dataloader.train.mapper._target_ = LabelMaskMapper
train.output_dir = "./output/labelenc/mask_rcnn_step1_r50"
