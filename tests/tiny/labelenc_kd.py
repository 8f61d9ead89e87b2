"""The detector of retinanet.py taught by another one like it."""

from .labelenc_step1 import dataloader, lr_multiplier, model, optimizer, train

model.label_enc.mode = "kd"
