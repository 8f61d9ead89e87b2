"""FCOS (arXiv:1904.01355), with the centre sampling and centerness of its second version
(2006.09214)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from detectron2.layers import cat
from detectron2.structures import Boxes, Instances, pairwise_point_box_distance
from detectron2.utils.events import get_event_storage

from ..anchor_generator import DefaultAnchorGenerator
from ..backbone import Backbone
from ..box_regression import Box2BoxTransformLinear, _dense_box_regression_loss
from .dense_detector import DenseDetector
from .retinanet import RetinaNetHead


class FCOS(DenseDetector):
    """One square anchor per cell, of the side of its stride: the "point" of the paper.

    Differs from the paper: losses are divided by a moving average (from 300, momentum 0.9) of the
    number of positive points; GIoU loss without centerness weights.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] | None = None,
        box2box_transform: Box2BoxTransformLinear | None = None,
        num_classes: int,
        center_sampling_radius: float = 1.5,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        test_score_thresh: float = 0.2,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            center_sampling_radius: in strides; positives lie nearer to a box's centre.
            test_score_thresh: limit of sqrt(class probability * centerness).
            test_topk_candidates: per level, before NMS.
        """
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.num_classes = num_classes
        shapes = backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
        )
        if box2box_transform is None:
            box2box_transform = Box2BoxTransformLinear(normalize_by_size=True)
        self.box2box_transform = box2box_transform
        self.center_sampling_radius = float(center_sampling_radius)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes, centerness)

    def _match_anchors(self, gt_boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """Quality (G, R) of every point for every box: 0, or larger the smaller the box.

        A point is a candidate if it lies inside the box, near its centre, and if the level's
        scale fits the distance to the farthest side (sec. 3.2, 3.3).
        """
        points = cat([a.get_centers() for a in anchors])
        strides = cat([a.tensor[:, 2] - a.tensor[:, 0] for a in anchors])
        offset = (points[None] - gt_boxes.get_centers()[:, None]).abs().amax(dim=2)
        near_center = offset < self.center_sampling_radius * strides

        sides = pairwise_point_box_distance(points, gt_boxes).transpose(0, 1)  # (G, R, 4)
        inside = sides.amin(dim=2) > 0
        lower, upper = 4 * strides, 8 * strides
        lower[: len(anchors[0])] = 0
        upper[len(upper) - len(anchors[-1]) :] = float("inf")
        farthest = sides.amax(dim=2)
        fits_level = (farthest > lower) & (farthest < upper)
        # float32 resolves 8 at 1e8: boxes whose areas are that close tie, the first one wins.
        return (near_center & inside & fits_level) * (1e8 - gt_boxes.area()[:, None])

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Per image, the class of every point (R,) int64 (K: background) and its box (R, 4)."""
        gt_labels, matched_boxes = [], []
        for gt in gt_instances:
            if len(gt) > 0:
                quality, index = self._match_anchors(gt.gt_boxes, anchors).max(dim=0)
                labels = gt.gt_classes[index]
                labels[quality < 1e-5] = self.num_classes
                boxes = gt.gt_boxes.tensor[index]
            else:
                boxes = torch.zeros_like(Boxes.cat(anchors).tensor)
                labels = torch.full_like(boxes[:, 0], self.num_classes, dtype=torch.int64)
            gt_labels.append(labels)
            matched_boxes.append(boxes)
        return gt_labels, matched_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_centerness: list[Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            pred_*: per level (N, Ri, K), (N, Ri, 4), (N, Ri, 1).
            gt_labels, gt_boxes: per image (R,) and (R, 4), from `label_anchors`.
        """
        labels = torch.stack(gt_labels)
        positive = labels != self.num_classes
        num_pos = positive.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_pos / len(gt_labels))
        normalizer = self._ema_update("loss_normalizer", max(num_pos, 1), 300)

        logits = cat(pred_logits, dim=1)
        target = F.one_hot(labels, self.num_classes + 1)[..., :-1].to(logits.dtype)
        losses = {
            "loss_fcos_cls": sigmoid_focal_loss_jit(
                logits, target, self.focal_loss_alpha, self.focal_loss_gamma, "sum"
            ),
            "loss_fcos_loc": _dense_box_regression_loss(
                anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, positive, "giou"
            ),
            "loss_fcos_ctr": F.binary_cross_entropy_with_logits(
                cat(pred_centerness, dim=1).squeeze(2)[positive],
                self.compute_ctrness_targets(anchors, gt_boxes)[positive],
                reduction="sum",
            ),
        }
        return {name: loss / normalizer for name, loss in losses.items()}

    def compute_ctrness_targets(self, anchors: list[Boxes], gt_boxes: list[Tensor]) -> Tensor:
        """(N, R), eq. 3: sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)); nan outside the box."""
        anchors = Boxes.cat(anchors).tensor
        sides = torch.stack([self.box2box_transform.get_deltas(anchors, gt) for gt in gt_boxes])
        left_right, top_bottom = sides[..., 0::2], sides[..., 1::2]
        ratio = [x.amin(dim=-1) / x.amax(dim=-1) for x in (left_right, top_bottom)]
        return torch.sqrt(ratio[0] * ratio[1])

    def forward_inference(self, images, features, predictions):
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.anchor_generator(features)
        return [
            self.inference_single_image(
                anchors,
                [(x[i].sigmoid() * c[i].sigmoid()).sqrt() for x, c in zip(logits, centerness)],
                [x[i] for x in deltas],
                size,
            )
            for i, size in enumerate(images.image_sizes)
        ]


class FCOSHead(RetinaNetHead):
    """RetinaNet's head with one anchor, and centerness from the tower of the boxes."""

    def __init__(self, *, input_shape: Sequence, conv_dims: Sequence[int], **kwargs):
        """kwargs: those of RetinaNetHead but num_anchors."""
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **kwargs)
        self.ctrness = nn.Conv2d(self.bbox_pred.in_channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.ctrness.weight, std=0.01)
        nn.init.zeros_(self.ctrness.bias)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """As RetinaNetHead, and the logit of the centerness (N, 1, Hi, Wi) per level."""
        logits, towers = self._towers(features)
        return logits, [self.bbox_pred(x) for x in towers], [self.ctrness(x) for x in towers]
