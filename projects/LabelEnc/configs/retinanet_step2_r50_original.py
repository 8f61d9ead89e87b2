"""RetinaNet, R-50-FPN, step 2 after retinanet_step1_r50_original.py."""

from .retinanet_step2_r50 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.step1_weights = "output/labelenc/retinanet_step1_r50_original/label_encoder.pth"
train.output_dir = "./output/labelenc/retinanet_step2_r50_original"
