"""The ResNet for images of 32 pixels (arXiv:1512.03385, sec. 4.2) as a classifier of CIFAR-10."""

from detectron2.config import LazyCall as L
from shared.classification import ImageClassifier, cifar_resnet

model = L(ImageClassifier)(
    backbone=L(cifar_resnet)(depth=20, norm="BN", out_features=["res4"]),
    num_classes=10,
    in_feature="res4",
    dropout=0.0,
    label_smoothing=0.0,
    # of CIFAR-10's training images, RGB
    pixel_mean=[125.307, 122.950, 113.866],
    pixel_std=[62.993, 62.089, 66.705],
)
