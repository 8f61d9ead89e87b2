"""The detector of retinanet_quick_1x.py taught by another one like it: "Vanilla KD"."""

from .retinanet_quick_step2 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.update(
    mode="kd",
    step1_weights="",
    teacher_config="output/labelenc/retinanet_quick_1x/config.yaml",
    teacher_weights="output/labelenc/retinanet_quick_1x/model_final.pth",
)
train.output_dir = "./output/labelenc/retinanet_quick_kd"
