"""Step 2 of the detector of faster_rcnn_quick_1x.py, after faster_rcnn_quick_step1.py; 40 of 360 without distance."""

from projects.LabelEnc import LabelEncGeneralizedRCNN

from .common.quick import label_enc as _label_enc
from .faster_rcnn_quick_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncGeneralizedRCNN, label_enc=_label_enc)
model.label_enc.update(mode="step2", step1_weights="output/labelenc/faster_rcnn_quick_step1/label_encoder.pth")
train.output_dir = "./output/labelenc/faster_rcnn_quick_step2"
