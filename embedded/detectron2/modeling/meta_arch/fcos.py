"""FCOS (arXiv:1904.01355), with the centre sampling and centerness of its second version (2006.09214)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.layers import cat
from detectron2.structures import Boxes, pairwise_point_box_distance

from ..anchor_generator import DefaultAnchorGenerator
from ..box_regression import Box2BoxTransformLinear
from ..convs import normal_fill
from .dense_detector import FocalDetector
from .retinanet import RetinaNetHead


class FCOS(FocalDetector):
    """One square anchor per cell, of the side of its stride: the "point" of the paper. Differs from it: losses are
    divided by a moving average (from 300, momentum 0.9) of the number of positive points; GIoU loss without centerness
    weights."""

    initial_loss_normalizer = 300

    def __init__(
        self, *, box2box_transform: Box2BoxTransformLinear | None = None, center_sampling_radius: float = 1.5, **kwargs
    ):
        """center_sampling_radius: in strides; positives lie nearer to a box's centre. kwargs: those of FocalDetector,
        whose test_score_thresh (of sqrt(class probability * centerness)) is 0.2 by default and test_nms_thresh 0.6."""
        transform = box2box_transform or Box2BoxTransformLinear(normalize_by_size=True)
        defaults = {"test_score_thresh": 0.2, "test_nms_thresh": 0.6, "box_reg_loss_type": "giou"}
        super().__init__(box2box_transform=transform, **{**defaults, **kwargs})
        shapes = self.backbone.output_shape()
        strides = [shapes[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(sizes=[[s] for s in strides], aspect_ratios=[1], strides=strides)
        self.center_sampling_radius = float(center_sampling_radius)
        self.prediction_dims = [self.num_classes, 4, 1]

    def _match_anchors(self, gt_boxes: Boxes, anchors: list[Boxes]) -> Tensor:
        """Quality (G, R) of every point for every box: 0, or larger the smaller the box.
        A point is a candidate if it lies inside the box, near its centre, and if the level's
        scale fits the distance to the farthest side (sec. 3.2, 3.3)."""
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

    def _match(self, gt_boxes, anchors):
        quality, index = self._match_anchors(gt_boxes, anchors).max(dim=0)
        return index, quality >= 1e-5

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness: list[Tensor]):
        """As FocalDetector's, and the loss of the centerness (N, Ri, 1) per level."""
        losses = super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        positive = torch.stack(gt_labels) != self.num_classes
        centerness = cat(pred_centerness, dim=1).squeeze(2)[positive]
        target = self.compute_ctrness_targets(anchors, gt_boxes)[positive]
        ctr = F.binary_cross_entropy_with_logits(centerness, target, reduction="sum") / self.loss_normalizer
        return {"loss_fcos_cls": losses["loss_cls"], "loss_fcos_loc": losses["loss_box_reg"], "loss_fcos_ctr": ctr}

    def compute_ctrness_targets(self, anchors: list[Boxes], gt_boxes: list[Tensor]) -> Tensor:
        """(N, R), eq. 3: sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)); nan outside the box."""
        anchors = Boxes.cat(anchors).tensor
        sides = torch.stack([self.box2box_transform.get_deltas(anchors, gt) for gt in gt_boxes])
        left_right, top_bottom = sides[..., 0::2], sides[..., 1::2]
        ratio = [x.amin(dim=-1) / x.amax(dim=-1) for x in (left_right, top_bottom)]
        return torch.sqrt(ratio[0] * ratio[1])

    def _scores(self, logits, centerness):
        return (logits.sigmoid() * centerness.sigmoid()).sqrt()


class FCOSHead(RetinaNetHead):
    """RetinaNet's head with one anchor, and centerness from the tower of the boxes."""

    def __init__(self, *, input_shape: Sequence, conv_dims: Sequence[int], **kwargs):
        """kwargs: those of RetinaNetHead but num_anchors."""
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, num_anchors=1, **kwargs)
        self.ctrness = nn.Conv2d(self.bbox_pred.in_channels, 1, kernel_size=3, padding=1)
        normal_fill(self.ctrness, std=0.01)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """As RetinaNetHead, and the logit of the centerness (N, 1, Hi, Wi) per level."""
        logits, towers = self._towers(features)
        return logits, [self.bbox_pred(x) for x in towers], [self.ctrness(x) for x in towers]
