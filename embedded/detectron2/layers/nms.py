"""Non-maximum suppression."""

from torch import Tensor
from torchvision.ops import batched_nms as _batched_nms
from torchvision.ops import nms  # noqa: F401


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress within equal `idxs` only. boxes: (R, 4) xyxy, compared in float32; scores and idxs: (R,). Returns the
    kept indices by falling score."""
    return _batched_nms(boxes.float(), scores, idxs, iou_threshold)
