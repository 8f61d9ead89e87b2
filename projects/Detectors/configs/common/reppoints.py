"""RepPoints with a ResNet-50-FPN for torchvision's weights (arXiv:1904.11490), without group norm."""

from detectron2.config import LazyCall as L
from projects.Detectors.reppoints import RepPoints
from projects.Detectors.reppoints_head import RepPointsHead

from .....configs.common.mmdetection_1x import pixels
from .....configs.common.models.retinanet import model as retinanet

model = L(RepPoints)(
    backbone=retinanet.backbone,
    head=L(RepPointsHead)(
        in_channels="${..backbone.out_channels}",
        num_classes="${..num_classes}",
        num_points=9,
        num_convs=3,
        norm="",  # or GN
        prior_prob=0.01,
        init_grad=0.1,
        points_to_box="moment",  # or minmax, partial_minmax
        moment_grad=0.01,
    ),
    head_in_features=retinanet.head_in_features,
    box_matcher=retinanet.anchor_matcher,
    num_classes=80,
    point_scale=4.0,
    focal_loss_alpha=0.25,
    focal_loss_gamma=2.0,
    smooth_l1_beta=0.11,
    init_loss_weight=0.5,
    refine_loss_weight=1.0,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
    pixel_mean=pixels.pixel_mean,
    pixel_std=pixels.pixel_std,
)
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2  # stem and res2
del retinanet, pixels  # a config's variables are its keys
