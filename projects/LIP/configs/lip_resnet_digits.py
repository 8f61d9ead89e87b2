"""The quick LIP-ResNet as a classifier of scikit-learn's handwritten digits, from nothing, on a CPU."""

from ....configs.classification.digits_resnet_bottleneck import dataloader, lr_multiplier, model, optimizer, train
from .faster_rcnn_lip_quick import model as detector

model.backbone = dict(detector.backbone.bottom_up, out_features=["res5"])
train.output_dir = "./output/lip_digits"
del detector  # a config's variables are its keys
