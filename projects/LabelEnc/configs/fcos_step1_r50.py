"""FCOS, step 1 R-50-FPN: the label encoder, and the head that every step 2 of this host starts from."""

from projects.LabelEnc import LabelEncFCOS

from .common.step1 import label_enc as _label_enc
from .common.step1 import lr_multiplier, train
from .fcos_r50_fpn_1x import dataloader, model, optimizer

model.update(_target_=LabelEncFCOS, label_enc=_label_enc)
train.output_dir = "./output/labelenc/fcos_step1_r50"
