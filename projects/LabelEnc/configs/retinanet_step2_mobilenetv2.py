"""RetinaNet, MobileNetV2-FPN, step 2 after retinanet_step1_r50.py (Table 6); laterals and P6 stay random."""

from projects.LabelEnc import LabelEncRetinaNet

from .common.step2 import label_enc as _label_enc
from .retinanet_mobilenetv2_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncRetinaNet, label_enc=_label_enc)
model.label_enc.step1_weights = "output/labelenc/retinanet_step1_r50/label_encoder.pth"
train.output_dir = "./output/labelenc/retinanet_step2_mobilenetv2"
