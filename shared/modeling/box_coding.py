"""Codings of boxes."""

from torch import Tensor

from detectron2.modeling.box_regression import Box2BoxTransformLinear


class Float32BoxTransformLinear(Box2BoxTransformLinear):
    """FCOS's coding, with boxes that are float32 whatever the head's output is.

    Detectron2 decodes in the deltas' dtype: under autocast in 16 bits, which resolve 4 px at 1000 px (bfloat16), and
    where its GIoU loss then ends in an error.
    """

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (R, 4k) on boxes (R, 4), xyxy in pixels. Returns (R, 4k), float32."""
        return super().apply_deltas(deltas.float(), boxes)
