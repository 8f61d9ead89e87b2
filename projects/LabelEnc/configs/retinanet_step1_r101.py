"""RetinaNet, step 1 R-101-FPN: the label encoder beside the deeper backbone (Table 3)."""

from projects.LabelEnc import LabelEncRetinaNet

from .common.step1 import label_enc as _label_enc
from .common.step1 import lr_multiplier, train
from .retinanet_r101_fpn_1x import dataloader, model, optimizer

model.update(_target_=LabelEncRetinaNet, label_enc=_label_enc)
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "./output/labelenc/retinanet_step1_r101"
