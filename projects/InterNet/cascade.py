"""Cascade R-CNN with the feature intertwiner in its first stage. The paper ("Feature Intertwiner for Object
Detection", ICLR 2019, arXiv:1903.11851) has no cascade; the later stages' boxes are those of the first, refined."""

from collections.abc import Sequence

from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Instances

from .build import make_cascade_box_parts, make_units
from .intertwiner import FeatureIntertwiner
from .pooler import InterNetROIPooler
from .roi_heads import IntertwinedMixin
from .units import Critic, MakeUp


@ROI_HEADS_REGISTRY.register()
class InterNetCascadeROIHeads(IntertwinedMixin, CascadeROIHeads):
    """CascadeROIHeads whose first stage has make-up, critic and intertwiner, as InterNetROIHeads has. All stages pool
    with the same InterNetROIPooler, so the later heads too average S x S cells to what their first layer takes."""

    @configurable
    def __init__(
        self,
        *,
        makeup: MakeUp | None,
        critic: Critic | None,
        intertwiner: FeatureIntertwiner | None,
        makeup_on: str = "roi",
        mask_uses_makeup: bool = False,
        box_pooler: InterNetROIPooler,
        box_heads: Sequence[nn.Module],
        **kwargs,
    ):
        """box_heads: InterNetConvFCHeads, all but the first with fusion "separate". kwargs: CascadeROIHeads'."""
        super().__init__(box_pooler=box_pooler, box_heads=box_heads, **kwargs)
        for stage, head in enumerate(list(box_heads)[1:], 1):
            if getattr(head, "fusion", "separate") != "separate":
                raise ValueError(
                    f"InterNetCascadeROIHeads: box_heads[{stage}] has fusion {head.fusion!r}, but only the first "
                    f"stage has a critic: set it to 'separate'."
                )
        self._set_parts(box_heads[0], makeup, critic, intertwiner, makeup_on, mask_uses_makeup)
        self._first_stage_losses: dict[str, Tensor] = {}  # of one training step

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        return {**super().from_config(cfg, input_shape), **make_units(cfg, input_shape)}

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        return make_cascade_box_parts(cfg, super()._init_box_head(cfg, input_shape), input_shape)

    def _forward_box(self, features, proposals, targets=None):
        result = super()._forward_box(features, proposals, targets)
        if self.training:
            result.update(self._first_stage_losses)
            self._first_stage_losses = {}
        return result

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int):
        if stage > 0:
            return super()._run_stage(features, proposals, stage)
        path = self._small_path(features, [p.proposal_boxes for p in proposals])
        if self.training:
            self._first_stage_losses = self._intertwine(features, proposals, path)
        return self._predict(self.box_head[0], self.box_predictor[0], path)

    def _scale_gradient(self, x: Tensor) -> Tensor:
        """As in the other stages: the maps get the mean of the stages' gradients."""
        return _ScaleGradient.apply(x, 1.0 / self.num_cascade_stages) if self.training else x
