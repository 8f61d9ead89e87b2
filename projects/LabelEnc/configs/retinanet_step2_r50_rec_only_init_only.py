"""RetinaNet, R-50-FPN, step 2 after retinanet_step1_rec_only.py: initialisation alone (Table 5)."""

from .retinanet_step2_r50_rec_only import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.weight_dis = 0.0
train.output_dir = "./output/labelenc/retinanet_step2_r50_rec_only_init_only"
