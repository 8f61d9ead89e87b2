"""RetinaNet, step 1 with the reconstruction loss alone (Tables 2 and 5): no image is looked at, 1x without warm-up."""

from .retinanet_r50_fpn_1x import lr_multiplier, train
from .retinanet_step1_r50 import dataloader, model, optimizer

model.label_enc.update(weight_det=0.0, weight_dis=0.0)
train.output_dir = "./output/labelenc/retinanet_step1_rec_only"
