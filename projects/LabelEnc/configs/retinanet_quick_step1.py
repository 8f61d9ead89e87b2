"""Step 1 with the detector of retinanet_quick_1x.py: 480 steps, the first 120 without the distance."""

from projects.LabelEnc import LabelEncRetinaNet

from .common.quick import label_enc as _label_enc
from .common.step1 import lr_multiplier as _step1
from .retinanet_quick_1x import dataloader, lr_multiplier, model, optimizer, train

model.update(_target_=LabelEncRetinaNet, label_enc=_label_enc)
lr_multiplier.drops = _step1.drops
train.max_iter = 480  # 120k where 1x, 90k, is 360
train.output_dir = "./output/labelenc/retinanet_quick_step1"
