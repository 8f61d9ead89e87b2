"""IoU losses with a distance term (arXiv:1911.08287). Boxes are (..., 4) xyxy in any unit."""

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss


def _check(boxes: Tensor) -> None:
    assert (boxes[..., 2:] >= boxes[..., :2]).all(), "The first boxes must have x2 >= x1 and y2 >= y1."


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + (centre distance / diagonal of the enclosing box)^2; shape (...) or a scalar."""
    _check(boxes1)
    return distance_box_iou_loss(boxes1, boxes2, reduction, eps)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """DIoU loss plus alpha * v, which compares the aspect ratios (eq. 8 to 11)."""
    _check(boxes1)
    return complete_box_iou_loss(boxes1, boxes2, reduction, eps)
