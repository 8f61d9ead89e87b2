"""RetinaNet (arXiv:1708.02002)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, cat, get_norm
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from ..anchor_generator import build_anchor_generator
from ..backbone import Backbone, build_backbone
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from .build import META_ARCH_REGISTRY
from .dense_detector import DenseDetector


@META_ARCH_REGISTRY.register()
class RetinaNet(DenseDetector):
    """Focal loss on every anchor, box loss on the positive ones.

    Differs from the paper: both losses are divided by a moving average (from 100, momentum 0.9)
    of the number of positive anchors of the batch, not by that of each image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
    ):
        """
        Args:
            box_reg_loss_type, smooth_l1_beta: see `_dense_box_regression_loss`.
            test_score_thresh: detections score above it.
            test_topk_candidates: per level, before NMS.
            vis_period, input_format: kept for tools that draw; RetinaNet itself draws nothing.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.vis_period = vis_period
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg):
        r = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        feature_shapes = [shapes[name] for name in r.IN_FEATURES]
        return {
            "backbone": backbone,
            "head": RetinaNetHead(cfg, feature_shapes),
            "anchor_generator": build_anchor_generator(cfg, feature_shapes),
            "box2box_transform": Box2BoxTransform(weights=r.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(r.IOU_THRESHOLDS, r.IOU_LABELS, True),
            "num_classes": r.NUM_CLASSES,
            "head_in_features": r.IN_FEATURES,
            "focal_loss_alpha": r.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": r.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": r.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": r.BBOX_REG_LOSS_TYPE,
            "test_score_thresh": r.SCORE_THRESH_TEST,
            "test_topk_candidates": r.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": r.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            pred_logits, pred_anchor_deltas: per level (N, Ri, K) and (N, Ri, 4).
            gt_labels, gt_boxes: per image (R,) and (R, 4), from `label_anchors`.
        """
        labels = torch.stack(gt_labels)
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        num_pos = positive.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_pos / len(gt_labels))
        normalizer = self._ema_update("loss_normalizer", max(num_pos, 1), 100)

        logits = cat(pred_logits, dim=1)[valid]
        target = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1].to(logits.dtype)
        loss_cls = sigmoid_focal_loss_jit(logits, target, self.focal_loss_alpha, self.focal_loss_gamma, "sum")
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Per image, the class of every anchor (R,) int64 (K: background, -1: ignored) and its
        matched box (R, 4), zeros if there is no ground truth."""
        anchors = Boxes.cat(anchors)
        gt_labels, matched_boxes = [], []
        for gt in gt_instances:
            index, anchor_labels = self.anchor_matcher(pairwise_iou(gt.gt_boxes, anchors))
            if len(gt) > 0:
                boxes = gt.gt_boxes.tensor[index]
                labels = gt.gt_classes[index]
                labels[anchor_labels == 0] = self.num_classes
                labels[anchor_labels == -1] = -1
            else:
                boxes = torch.zeros_like(anchors.tensor)
                labels = torch.full_like(index, self.num_classes)
            gt_labels.append(labels)
            matched_boxes.append(boxes)
        return gt_labels, matched_boxes

    def forward_inference(self, images, features, predictions):
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(anchors, [x[i].sigmoid() for x in logits], [x[i] for x in deltas], size)
            for i, size in enumerate(images.image_sizes)
        ]


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
        """
        Args:
            input_shape: one per level, of equal channels.
            norm: for `get_norm`; "BN" and "SyncBN" keep separate statistics per level.
            prior_prob: probability of every class at the start, through the bias.
        """
        super().__init__()
        self._num_features = len(input_shape)
        norm = self._norm_per_level(norm)
        channels = input_shape[0].channels
        cls_subnet, bbox_subnet = [], []
        for out_channels in conv_dims:
            for tower in (cls_subnet, bbox_subnet):
                tower.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1))
                if norm:
                    tower.append(get_norm(norm, out_channels))
                tower.append(nn.ReLU())
            channels = out_channels
        self.cls_subnet = nn.Sequential(*cls_subnet)
        self.bbox_subnet = nn.Sequential(*bbox_subnet)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, kernel_size=3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def _norm_per_level(self, norm):
        """What `get_norm` takes for layers that see every level in turn."""
        bn_class = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}.get(norm)
        if bn_class is not None:
            return lambda c: CycleBatchNormList(self._num_features, bn_class, num_features=c)
        return norm

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        num_anchors = build_anchor_generator(cfg, input_shape).num_cell_anchors
        assert len(set(num_anchors)) == 1, (
            f"RetinaNetHead needs equally many anchors per cell on all levels, got {num_anchors}."
        )
        r = cfg.MODEL.RETINANET
        return {
            "input_shape": input_shape,
            "num_classes": r.NUM_CLASSES,
            "num_anchors": num_anchors[0],
            "conv_dims": [input_shape[0].channels] * r.NUM_CONVS,
            "norm": r.NORM,
            "prior_prob": r.PRIOR_PROB,
        }

    def _towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits, and the last maps of the box tower."""
        assert len(features) == self._num_features, (
            f"The head was built for {self._num_features} levels, got {len(features)}."
        )
        logits = [self.cls_score(self.cls_subnet(x)) for x in features]
        return logits, [self.bbox_subnet(x) for x in features]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Maps (N, C, Hi, Wi) -> class logits (N, A*K, Hi, Wi), deltas (N, A*4, Hi, Wi)."""
        logits, towers = self._towers(features)
        return logits, [self.bbox_pred(x) for x in towers]
