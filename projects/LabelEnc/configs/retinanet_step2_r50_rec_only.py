"""RetinaNet, R-50-FPN, step 2 after retinanet_step1_rec_only.py (Table 2)."""

from .retinanet_step2_r50 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.step1_weights = "output/labelenc/retinanet_step1_rec_only/label_encoder.pth"
train.output_dir = "./output/labelenc/retinanet_step2_r50_rec_only"
