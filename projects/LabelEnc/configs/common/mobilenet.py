"""MobileNetV2 as RetinaNet's `bottom_up` (the paper's Table 6 says "MobileNet"; the version is the released code's)."""

from detectron2.config import LazyCall as L
from shared.modeling.mobilenet import MobileNetV2

bottom_up = L(MobileNetV2)(norm="FrozenBN", out_features=["res3", "res4", "res5"], freeze_at=2)
