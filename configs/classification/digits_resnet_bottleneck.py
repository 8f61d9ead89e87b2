"""The ResNet of configs/quickstart_bottleneck.py on scikit-learn's digits: a start for that detector."""

from ..quickstart_bottleneck import model as detector
from .digits_resnet import dataloader, lr_multiplier, model, optimizer, train

model.backbone = dict(detector.backbone.bottom_up, out_features=["res5"])
model.in_feature = "res5"
model.update(pixel_mean=detector.pixel_mean, pixel_std=detector.pixel_std)
for loader in (dataloader.train, dataloader.test):
    for transform in loader.mapper.transforms:
        if "size" in transform:
            transform.size = 64  # 2 x 2 cells of stride 32
train.output_dir = "./output/digits_resnet_bottleneck"
del detector, loader, transform  # a config's variables are its keys
