"""FCOS with a ResNet-50-FPN (arXiv:1904.01355), center sampling and centerness on the box branch."""

from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from shared.modeling.box_coding import Float32BoxTransformLinear

from .retinanet import model

model._target_ = FCOS
for key in ("anchor_generator", "anchor_matcher", "input_format"):
    model.pop(key)
model.box2box_transform = L(Float32BoxTransformLinear)(normalize_by_size=True)

model.backbone.top_block.in_feature = "p5"  # P6 from P5 rather than from res5
model.backbone.top_block.in_channels = 256

model.test_score_thresh = 0.2
model.test_nms_thresh = 0.6

model.head._target_ = FCOSHead
model.head.pop("num_anchors")
model.head.norm = "GN"
