"""RetinaNet, R-101-FPN, step 2 after retinanet_step1_r101.py (Table 3)."""

from .retinanet_step2_r101 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.step1_weights = "output/labelenc/retinanet_step1_r101/label_encoder.pth"
train.output_dir = "./output/labelenc/retinanet_step2_r101_from_r101"
