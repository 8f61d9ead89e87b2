"""RetinaNet (arXiv:1708.02002)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from detectron2.structures import Boxes, pairwise_iou

from ..anchor_generator import build_anchor_generator
from ..backbone import build_backbone
from ..box_regression import Box2BoxTransform
from ..convs import normal_fill
from ..matcher import Matcher
from .build import META_ARCH_REGISTRY
from .dense_detector import FocalDetector


@META_ARCH_REGISTRY.register()
class RetinaNet(FocalDetector):
    """Focal loss on every anchor, box loss on the positive ones. Differs from the paper: both are divided by a moving
    average (from 100, momentum 0.9) of the number of positive anchors of the batch, not by that of each image."""

    @configurable
    def __init__(
        self, *, anchor_generator: nn.Module, anchor_matcher: Matcher, vis_period=0, input_format="BGR", **kwargs
    ):
        """vis_period, input_format: kept for tools that draw; kwargs: those of FocalDetector and DenseDetector."""
        super().__init__(**kwargs)
        self.anchor_generator, self.anchor_matcher = anchor_generator, anchor_matcher
        self.vis_period, self.input_format = vis_period, input_format
        self.prediction_dims = [self.num_classes, 4]

    @classmethod
    def from_config(cls, cfg):
        r, backbone = cfg.MODEL.RETINANET, build_backbone(cfg)
        shapes = backbone.output_shape()
        feature_shapes = [shapes[name] for name in r.IN_FEATURES]
        test = {"test_score_thresh": r.SCORE_THRESH_TEST, "test_nms_thresh": r.NMS_THRESH_TEST}
        pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
        return {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, feature_shapes),
            "head_in_features": r.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "anchor_matcher": Matcher(r.IOU_THRESHOLDS, r.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=r.BBOX_REG_WEIGHTS),
            **{key.lower(): r[key] for key in ("NUM_CLASSES", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA")},
            "smooth_l1_beta": r.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": r.BBOX_REG_LOSS_TYPE,
            **test,
            "test_topk_candidates": r.TOPK_CANDIDATES_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            **pixels,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def _match(self, gt_boxes, anchors):
        return self.anchor_matcher(pairwise_iou(gt_boxes, Boxes.cat(anchors)))

    def _scores(self, logits):
        return logits.sigmoid()


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, for classes and boxes, shared by all levels."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int,
        conv_dims: Sequence[int],
        norm="",
        prior_prob: float = 0.01,
    ):
        """input_shape: one per level, of equal channels. norm: for `get_norm`; "BN" and "SyncBN" keep statistics per
        level. prior_prob: probability of every class at the start, through the bias."""
        super().__init__()
        self._num_features, channels = len(input_shape), input_shape[0].channels
        bn_class = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}.get(norm)
        towers = [], []  # for classes, for boxes
        for out_channels in conv_dims:
            for tower in towers:
                tower.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1))
                if bn_class:  # the layer sees every level in turn
                    tower.append(CycleBatchNormList(self._num_features, bn_class, num_features=out_channels))
                elif norm:
                    tower.append(get_norm(norm, out_channels))
                tower.append(nn.ReLU())
            channels = out_channels
        self.cls_subnet, self.bbox_subnet = (nn.Sequential(*tower) for tower in towers)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=3, padding=1)
        normal_fill(self, std=0.01)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        r, num_anchors = cfg.MODEL.RETINANET, build_anchor_generator(cfg, input_shape).num_cell_anchors
        assert len(set(num_anchors)) == 1, f"All levels need as many anchors per cell, got {num_anchors}."
        conv_dims = [input_shape[0].channels] * r.NUM_CONVS
        sizes = {"input_shape": input_shape, "num_anchors": num_anchors[0], "conv_dims": conv_dims}
        return {**sizes, **{key.lower(): r[key] for key in ("NUM_CLASSES", "NORM", "PRIOR_PROB")}}

    def _towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits, and the last maps of the box tower."""
        num = self._num_features
        assert len(features) == num, f"The head was built for {num} levels, got {len(features)}."
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        return logits, [self.bbox_subnet(x) for x in features]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Maps (N, C, Hi, Wi) -> class logits (N, A*K, Hi, Wi), deltas (N, A*4, Hi, Wi)."""
        logits, towers = self._towers(features)
        return logits, [self.bbox_pred(x) for x in towers]
