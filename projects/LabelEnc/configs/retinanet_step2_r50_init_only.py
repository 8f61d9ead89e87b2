"""RetinaNet, R-50-FPN, step 2 after retinanet_step1_r50.py: initialisation alone (Table 5)."""

from .retinanet_step2_r50 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.weight_dis = 0.0
train.output_dir = "./output/labelenc/retinanet_step2_r50_init_only"
