"""Faster R-CNN, R-101-FPN, modulated deformable in c3-c5, step 2 after faster_rcnn_step1_r50.py."""

from projects.LabelEnc import LabelEncGeneralizedRCNN

from .common.step2 import label_enc as _label_enc
from .faster_rcnn_r101_dcn_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncGeneralizedRCNN, label_enc=_label_enc)
model.label_enc.step1_weights = "output/labelenc/faster_rcnn_step1_r50/label_encoder.pth"
train.output_dir = "./output/labelenc/faster_rcnn_step2_r101_dcn"
