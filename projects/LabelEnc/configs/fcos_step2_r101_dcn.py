"""FCOS, R-101-FPN, modulated deformable in c3-c5, step 2 after fcos_step1_r50.py."""

from projects.LabelEnc import LabelEncFCOS

from .common.step2 import label_enc as _label_enc
from .fcos_r101_dcn_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncFCOS, label_enc=_label_enc)
model.label_enc.step1_weights = "output/labelenc/fcos_step1_r50/label_encoder.pth"
train.output_dir = "./output/labelenc/fcos_step2_r101_dcn"
