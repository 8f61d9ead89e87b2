"""MuSu on a ResNet-50-FPN, one square anchor a location, every knob.

All values are ours, as the paper's could not be read; backbone, head and anchors follow ATSS and Detectron2's FCOS.
"""

from detectron2.config import LazyCall as L
from projects.MuSu import MuSu, MuSuAssigner, TwoSidedFocal, tiled_anchors

from .....configs.common.models.retinanet import model

for key in ("box2box_transform", "anchor_matcher", "focal_loss_alpha", "focal_loss_gamma", "input_format"):
    model.pop(key)
del key
model._target_ = MuSu
model.backbone.bottom_up.freeze_at = 2  # stem and res2
model.backbone.top_block.in_feature = "p5"  # P6 from P5 rather than from res5
model.backbone.top_block.in_channels = "${..out_channels}"
model.head.update(norm="GN", num_anchors=1)  # num_anchors: octaves times aspect ratios
model.update(
    anchor_generator=L(tiled_anchors)(strides=[8, 16, 32, 64, 128], scale=8.0, octaves=1, aspect_ratios=[1.0]),
    assigner=L(MuSuAssigner)(
        bag_region="inside",
        center_radius=1.5,
        bag_joint="product",
        bag_filter="mean_std",
        bag_filter_k=1.0,
        bag_topk=27,
        bag_fallback="none",
        conflict="joint",
        mix_own_cls=0.1,
        mix_own_reg=0.3,
        weight_fn="rank_exp",
        temp_mode="adaptive",
        temp_exp=0.5,
        temp_div_cls=2.0,
        temp_div_reg=1.0,
        tau_min=0.0,
        temp_fixed=5.0,
        max_pairs=2_000_000,
    ),
    cls_loss=L(TwoSidedFocal)(alpha=0.25, gamma=2.0),
    reg_param="delta",
    reg_loss_weight=2.0,
    normalizer="weight_sum_ema",
    balance_gt=False,
    warmup_iters=0,
    stats_period=20,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.6,
    max_detections_per_image=100,
)
