"""Step 2 of the detector of retinanet_quick_1x.py, after retinanet_quick_step1.py; 40 of 360 without distance."""

from projects.LabelEnc import LabelEncRetinaNet

from .common.quick import label_enc as _label_enc
from .retinanet_quick_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncRetinaNet, label_enc=_label_enc)
model.label_enc.update(mode="step2", step1_weights="output/labelenc/retinanet_quick_step1/label_encoder.pth")
train.output_dir = "./output/labelenc/retinanet_quick_step2"
