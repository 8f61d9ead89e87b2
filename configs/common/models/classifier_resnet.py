"""ResNet-50 (arXiv:1512.03385) as a classifier of ImageNet's 1000 classes; the stride is in the 3x3 convolutions."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BasicStem, ResNet
from shared.classification import ImageClassifier

from ..data.constants import constants

model = L(ImageClassifier)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="BN"),
        out_features=["res5"],
    ),
    num_classes=1000,  # null: as many as the training data have
    in_feature="res5",
    dropout=0.0,
    label_smoothing=0.0,
    pixel_mean=constants["imagenet_rgb256_mean"],
    pixel_std=constants["imagenet_rgb256_std"],
)
