"""RetinaNet, R-50-FPN, "Vanilla KD" from retinanet_r101_fpn_1x.py (Table 6): step 2 with the teacher's maps."""

from projects.LabelEnc import LabelEncRetinaNet

from .common.step2 import label_enc as _label_enc
from .retinanet_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncRetinaNet, label_enc=_label_enc)
model.label_enc.update(
    mode="kd",
    teacher_config="output/labelenc/retinanet_r101_fpn_1x/config.yaml",
    teacher_weights="output/labelenc/retinanet_r101_fpn_1x/model_final.pth",
)
train.output_dir = "./output/labelenc/retinanet_kd_r50_from_r101"
