"""LabelEnc's module for the quick configs: an encoder an eighth as wide, as their backbones are of ResNet-50."""

from .label_enc import label_enc

label_enc.update(stem_out=16, res2_out=32)
