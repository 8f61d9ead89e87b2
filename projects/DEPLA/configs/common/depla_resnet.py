"""DEPLA-ResNet-50 as a classifier's backbone; se_ratio 16 makes it an SE-ResNet, depla null the host."""

from detectron2.config import LazyCall as L
from projects.DEPLA.resnet import depla_resnet

from .sites import backbone_depla

backbone = L(depla_resnet)(
    depth=50,
    depla=backbone_depla,
    stage="res4",  # the third of four
    blocks=[-3, -2, -1],  # which three is not stated; ours
    se_ratio=0,
    norm="BN",
    stride_in_1x1=False,
    out_features=["res5"],
    freeze_at=0,
)
