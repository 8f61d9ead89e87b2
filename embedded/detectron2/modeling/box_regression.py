"""Encodings of one box relative to another, and the box loss of dense heads."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes


def _centers_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) xyxy -> centres (..., 2), widths and heights (..., 2)."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


class Box2BoxTransform:
    """R-CNN's encoding (arXiv:1311.2524): shift by a fraction of the size, log of the scale.
    d[x,y] = w[x,y] * (target centre - source centre) / source size
    d[w,h] = w[w,h] * log(target size / source size)"""

    def __init__(self, weights: Sequence, scale_clamp: float = math.log(1000.0 / 16)):
        """weights: factors of (dx, dy, dw, dh). scale_clamp: upper limit of the decoded dw, dh."""
        self.weights, self.scale_clamp = weights, scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(R, 4), (R, 4) -> (R, 4). Every source box must have a positive width."""
        src, src_size = _centers_sizes(src_boxes)
        target, target_size = _centers_sizes(target_boxes)
        assert (src_size[:, 0] > 0).all(), "Input boxes to Box2BoxTransform are not valid!"
        deltas = torch.cat([(target - src) / src_size, torch.log(target_size / src_size)], dim=1)
        return torch.stack([d * w for d, w in zip(deltas.unbind(-1), self.weights)], dim=-1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4k) applied to boxes (R, 4), in float32. Returns (R, 4k)."""
        deltas = deltas.float()
        center, size = (x.unsqueeze(1) for x in _centers_sizes(boxes.to(deltas.dtype)))
        d = torch.stack([x / w for x, w in zip(deltas.unflatten(1, (-1, 4)).unbind(-1), self.weights)], dim=-1)
        center = center + d[..., :2] * size
        half = 0.5 * torch.exp(d[..., 2:].clamp(max=self.scale_clamp)) * size
        return torch.cat([center - half, center + half], dim=-1).flatten(1)


class Box2BoxTransformLinear:
    """FCOS's encoding (arXiv:1904.01355, eq. 1): distances of the sides (l, t, r, b) from the source's centre, in
    units of the source's width and height if `normalize_by_size`."""

    def __init__(self, normalize_by_size: bool = True):
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(R, 4), (R, 4) -> (R, 4); negative where the centre lies outside the target."""
        center, size = _centers_sizes(src_boxes)
        deltas = torch.cat([center - target_boxes[:, :2], target_boxes[:, 2:] - center], dim=1)
        return deltas / size.repeat(1, 2) if self.normalize_by_size else deltas

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4k), negative ones as 0, on boxes (R, 4). Returns (R, 4k) in their dtype."""
        d = F.relu(deltas).unflatten(1, (-1, 4))
        center, size = (x.unsqueeze(1) for x in _centers_sizes(boxes.to(deltas.dtype)))
        d = d * size.repeat(1, 1, 2) if self.normalize_by_size else d
        return torch.cat([center - d[..., :2], center + d[..., 2:]], dim=-1).flatten(1)


_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def _dense_box_regression_loss(
    anchors: list[Boxes | Tensor],
    box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    fg_mask: Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the box loss over the foreground anchors.
    anchors: per level, R boxes in all. pred_anchor_deltas: per level (N, Ri, 4).
    gt_boxes: per image (R, 4), the box matched to each anchor; background rows are ignored.
    fg_mask: (N, R) bool, or `...` for all.
    box_reg_loss_type: "smooth_l1" compares deltas; "giou", "diou", "ciou" decoded boxes."""
    anchors = torch.cat([a.tensor if isinstance(a, Boxes) else a for a in anchors])
    pred = cat(pred_anchor_deltas, dim=1)
    if box_reg_loss_type == "smooth_l1":
        # Background rows may give log(0) here: the mask drops them.
        target = torch.stack([box2box_transform.get_deltas(anchors, gt) for gt in gt_boxes])
        return smooth_l1_loss(pred[fg_mask], target[fg_mask], smooth_l1_beta, reduction="sum")
    if box_reg_loss_type not in _IOU_LOSSES:
        raise ValueError(f"Invalid box_reg_loss_type '{box_reg_loss_type}': use smooth_l1, {', '.join(_IOU_LOSSES)}.")
    boxes = torch.stack([box2box_transform.apply_deltas(d, anchors) for d in pred])
    return _IOU_LOSSES[box_reg_loss_type](boxes[fg_mask], torch.stack(gt_boxes)[fg_mask], reduction="sum")
