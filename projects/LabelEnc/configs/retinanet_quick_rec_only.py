"""Step 1 with the reconstruction loss alone, for the detector of retinanet_quick_1x.py: 1x without warm-up."""

from .retinanet_quick_1x import lr_multiplier, train
from .retinanet_quick_step1 import dataloader, model, optimizer

model.label_enc.update(weight_det=0.0, weight_dis=0.0)
train.output_dir = "./output/labelenc/retinanet_quick_rec_only"
