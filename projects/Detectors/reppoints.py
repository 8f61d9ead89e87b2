"""RepPoints: a dense detector that predicts sets of points, without anchor boxes (arXiv:1904.11490).

N: images, R: locations of all levels, Ri: of one level, K: classes, P: points per location.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit, smooth_l1_loss
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import batched_nms, cat
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from shared.distributed import sum_over_workers

from .reppoints_assign import assign_centers, match_boxes
from .reppoints_head import RepPointsHead


@META_ARCH_REGISTRY.register()
class RepPoints(DenseDetector):
    """First points learn the nearest object centre; their boxes choose by IoU what classes and refined points learn.

    An "anchor" here is a square of the side of its stride around its location, as in Detectron2's FCOS: it carries the
    location and the stride, its size means nothing else. Losses are divided by the number of positive locations of
    the process's batch, at least one an image.
    """

    sync_normalizers = False  # see shared.modeling.normalizers

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str],
        box_matcher: Matcher,
        num_classes: int,
        point_scale: float = 4.0,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.11,
        init_loss_weight: float = 0.5,
        refine_loss_weight: float = 1.0,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """head: `RepPointsHead`, or what returns its three lists and has its `points_to_box`.
        box_matcher: on the IoU of the first boxes. point_scale: sides of objects in strides of their level; the unit
        of the box losses is that many strides. test_topk_candidates: locations per level before NMS.

        ValueError: strides of head_in_features do not double.
        """
        super().__init__(
            backbone, head, head_in_features=list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        shapes = backbone.output_shape()
        self.strides = [shapes[name].stride for name in self.head_in_features]
        if self.strides != [self.strides[0] << i for i in range(len(self.strides))]:
            raise ValueError(
                f"RepPoints needs levels whose strides double, head_in_features {self.head_in_features} have "
                f"{self.strides}: name consecutive levels, finest first."
            )
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[s] for s in self.strides], aspect_ratios=[1.0], strides=self.strides, offset=0.0
        )
        self.box_matcher, self.num_classes, self.point_scale = box_matcher, num_classes, point_scale
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.init_loss_weight, self.refine_loss_weight = init_loss_weight, refine_loss_weight
        self.test_score_thresh, self.test_topk_candidates = test_score_thresh, test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image

    @classmethod
    def from_config(cls, cfg):
        node, backbone = cfg.MODEL.REPPOINTS, build_backbone(cfg)
        shapes, levels = backbone.output_shape(), cfg.MODEL.RETINANET.IN_FEATURES
        keys = ("POINT_SCALE", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA", "SMOOTH_L1_BETA")
        keys += ("INIT_LOSS_WEIGHT", "REFINE_LOSS_WEIGHT")
        return {
            "backbone": backbone,
            "head": RepPointsHead(cfg, [shapes[name] for name in levels]),
            "head_in_features": levels,
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "box_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True),
            **{key.lower(): node[key] for key in keys},
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def _split(self, predictions: Sequence[list[Tensor]]) -> list[list[Tensor]]:
        """The head's maps per level as logits (N, Ri, K), first and refined points (N, Ri, 2P)."""
        logits, init, refine = predictions
        return self._transpose_dense_predictions(predictions, [self.num_classes, init[0].shape[1], refine[0].shape[1]])

    def _decode(self, points: Tensor, anchors: Tensor) -> Tensor:
        """Points (..., R, 2P) in strides from the locations of `anchors` (R, 4) -> boxes (..., R, 4) in pixels."""
        stride, location = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
        return self.head.points_to_box(points) * stride.repeat(1, 2) + location.repeat(1, 2)

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """predictions: the head's three lists of maps. gt_instances: with gt_boxes and gt_classes, possibly none."""
        logits, init, refine = (cat(levels, dim=1) for levels in self._split(predictions))
        anchors = Boxes.cat(self.anchor_generator(features)).tensor
        init_boxes, refine_boxes = self._decode(init, anchors), self._decode(refine, anchors)
        shapes = [tuple(x.shape[-2:]) for x in features]
        targets = self.label_locations(shapes, init_boxes.detach(), gt_instances)
        return self.losses(anchors, logits, init_boxes, refine_boxes, gt_instances, *targets)

    @torch.no_grad()
    def label_locations(
        self, shapes: Sequence[tuple[int, int]], init_boxes: Tensor, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What every location learns.

        Args:
            shapes: (rows, columns) per level. init_boxes: (N, R, 4), boxes of the first points, in pixels.
        Returns:
            (N, R) int64 each: the ground truth of the first points, -1: none; that of the refined points, -1: none;
            the class, K: background, -1: ignored.
        """
        init_index, refine_index, classes = [], [], []
        for gt, boxes in zip(gt_instances, init_boxes):
            init_index.append(assign_centers(gt.gt_boxes, shapes, self.strides, self.point_scale))
            index, labels = match_boxes(self.box_matcher, gt.gt_boxes, Boxes(boxes))
            index = index.masked_fill(labels != 1, -1)
            refine_index.append(index)
            # the row appended for index -1 is the background
            with_background = torch.cat([gt.gt_classes, gt.gt_classes.new_tensor([self.num_classes])])
            classes.append(with_background[index].masked_fill(labels == -1, -1))
        return torch.stack(init_index), torch.stack(refine_index), torch.stack(classes)

    def losses(
        self,
        anchors: Tensor,
        logits: Tensor,
        init_boxes: Tensor,
        refine_boxes: Tensor,
        gt_instances: list[Instances],
        init_index: Tensor,
        refine_index: Tensor,
        classes: Tensor,
    ) -> dict[str, Tensor]:
        """Focal loss of all locations that are not ignored, smooth L1 of the boxes of positive ones.

        anchors: (R, 4); logits: (N, R, K); boxes: (N, R, 4) in pixels; the last three are `label_locations`'s.
        """
        storage = get_event_storage()
        for name, index in (("init", init_index), ("refine", refine_index)):
            storage.put_scalar(f"num_pos_{name}", (index >= 0).sum().item() / len(index))
        valid = classes >= 0
        target = F.one_hot(classes[valid], self.num_classes + 1)[:, :-1].to(logits.dtype)
        focal = sigmoid_focal_loss_jit(logits[valid], target, self.focal_loss_alpha, self.focal_loss_gamma, "sum")
        init = self._box_loss(anchors, init_boxes, gt_instances, init_index)
        refine = self._box_loss(anchors, refine_boxes, gt_instances, refine_index)
        return {
            "loss_cls": focal / self._normalizer(refine_index),
            "loss_box_init": self.init_loss_weight * init,
            "loss_box_refine": self.refine_loss_weight * refine,
        }

    def _box_loss(self, anchors: Tensor, boxes: Tensor, gt_instances: list[Instances], index: Tensor) -> Tensor:
        positive = index >= 0
        target = torch.cat([gt.gt_boxes.tensor[i[i >= 0]] for gt, i in zip(gt_instances, index)])
        stride = (anchors[:, 2] - anchors[:, 0]).expand_as(index)[positive]
        unit = self.point_scale * stride[:, None]
        loss = smooth_l1_loss(boxes[positive] / unit, target / unit, self.smooth_l1_beta, reduction="sum")
        return loss / self._normalizer(index)

    def _normalizer(self, index: Tensor) -> Tensor:
        """Positive locations of the batch, from `index` (N, R), at least one an image."""
        count = (index >= 0).sum(dim=1).clamp(min=1).sum()
        return sum_over_workers(count) / comm.get_world_size() if self.sync_normalizers else count

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions) -> list[Instances]:
        """Detections per image, in pixels of the input."""
        anchors = self.anchor_generator(features)
        logits, _, points = self._split(predictions)
        return [
            self.inference_single_image(anchors, [x[i] for x in logits], [x[i] for x in points], size)
            for i, size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self, anchors: list[Boxes], logits: list[Tensor], points: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections after NMS from logits (Ri, K) and refined points (Ri, 2P) per level."""
        levels = zip(anchors, logits, points)
        found = Instances.cat([self._best_of_level(*level, image_size) for level in levels])
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]

    def _best_of_level(self, anchors: Boxes, logits: Tensor, points: Tensor, image_size) -> Instances:
        """Every class above the threshold, at the locations of one level with the highest scores; clipped boxes.

        Locations are limited, not pairs of location and class as in Detectron2's other dense detectors: the authors'
        rule.
        """
        scores = logits.sigmoid()
        best = scores.amax(dim=1).topk(min(self.test_topk_candidates, len(scores))).indices
        boxes = Boxes(self._decode(points[best], anchors.tensor[best]))
        boxes.clip(image_size)
        scores = scores[best]
        rows, classes = (scores > self.test_score_thresh).nonzero(as_tuple=True)
        return Instances(image_size, pred_boxes=boxes[rows], scores=scores[rows, classes], pred_classes=classes)
