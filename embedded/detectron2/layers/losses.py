"""IoU losses with a distance term (arXiv:1911.08287). Boxes are (..., 4) xyxy in any unit."""

import math

import torch
from torch import Tensor


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else 0.0 * loss.sum()
    return loss.sum() if reduction == "sum" else loss


def _iou_and_diou(boxes1: Tensor, boxes2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoU and DIoU loss (eq. 7), both of shape (...)."""
    low1, high1 = boxes1.split(2, dim=-1)
    low2, high2 = boxes2.split(2, dim=-1)
    assert (high1 >= low1).all(), "The first boxes must have x2 >= x1 and y2 >= y1."
    inter = (torch.min(high1, high2) - torch.max(low1, low2)).clamp(min=0).prod(dim=-1)
    union = (high1 - low1).prod(dim=-1) + (high2 - low2).prod(dim=-1) - inter
    iou = inter / (union + eps)
    diagonal2 = (torch.max(high1, high2) - torch.min(low1, low2)).square().sum(dim=-1)
    distance2 = ((low1 + high1 - low2 - high2) / 2).square().sum(dim=-1)
    return iou, 1 - iou + distance2 / (diagonal2 + eps)


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + (centre distance / diagonal of the enclosing box)^2; shape (...) or a scalar."""
    return _reduce(_iou_and_diou(boxes1, boxes2, eps)[1], reduction)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """DIoU loss plus alpha * v, which compares the aspect ratios (eq. 8 to 11)."""
    iou, diou = _iou_and_diou(boxes1, boxes2, eps)
    w1, h1 = (boxes1[..., 2:] - boxes1[..., :2]).unbind(dim=-1)
    w2, h2 = (boxes2[..., 2:] - boxes2[..., :2]).unbind(dim=-1)
    v = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return _reduce(diou + alpha * v, reduction)
