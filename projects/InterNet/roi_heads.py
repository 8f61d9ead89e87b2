"""RoI heads of InterNet ("Feature Intertwiner for Object Detection", ICLR 2019, arXiv:1903.11851, Sec. 3, Fig. 2).
R: RoIs of the whole batch, C: channels, S x S: pooled size, D: width of the critic's output.

The critic is needed at inference only where the box head fuses its feature, `intertwiner` never: heads built without
them give the same detections, bit for bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, select_foreground_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from .build import make_box_parts, make_units
from .intertwiner import FeatureIntertwiner, Foreground
from .pooler import InterNetROIPooler
from .units import Critic, MakeUp

MAKEUP_ON = ("roi", "map")


class SmallPath(NamedTuple):
    """What every RoI goes through, in the proposals' order, in training and at inference."""

    rois: Tensor  # (R, 5) image, x0, y0, x1, y1 in pixels
    levels: Tensor  # (R,) index
    made_up: Tensor  # (R, C, S, S)
    critic_feature: Tensor | None  # (R, D), None unless the box head fuses it


class IntertwinedMixin:
    """The small path, the intertwiner's losses and the mask branch on made-up features. Beside a class of
    Detectron2's box branch; `box_pooler` is an InterNetROIPooler."""

    makeup: MakeUp | None
    critic: Critic | None
    intertwiner: FeatureIntertwiner | None

    def _set_parts(self, head: nn.Module, makeup, critic, intertwiner, makeup_on: str, mask_uses_makeup: bool) -> None:
        """head: the box head that may fuse. Raises ValueError where the parts do not fit together."""
        fusion = getattr(head, "fusion", "separate")
        if makeup_on not in MAKEUP_ON:
            raise ValueError(f"InterNet: makeup_on (MAKEUP_ON) is {makeup_on!r}, choose one of {', '.join(MAKEUP_ON)}.")
        if critic is None and (fusion != "separate" or intertwiner is not None):
            raise ValueError(f"InterNet: fusion {fusion!r} and the intertwiner need a critic, which is None.")
        if fusion != "separate" and critic.dim != head.fc1.out_features:
            raise ValueError(
                f"InterNet: fusion {fusion!r} mixes fc1's {head.fc1.out_features} values with the critic's "
                f"{critic.dim}: make MODEL.INTERNET.CRITIC_DIM equal MODEL.ROI_BOX_HEAD.FC_DIM, or use 'separate'."
            )
        if intertwiner is not None and intertwiner.buffer.num_classes != self.num_classes:
            raise ValueError(
                f"InterNet: the buffer has {intertwiner.buffer.num_classes} classes and the RoI heads "
                f"{self.num_classes}: set both to the data's."
            )
        if mask_uses_makeup and self.train_on_pred_boxes:
            raise ValueError(
                "InterNet: MASK_USES_MAKEUP trains masks on the proposals' features, TRAIN_ON_PRED_BOXES on others: "
                "turn one of them off."
            )
        self.makeup, self.critic, self.intertwiner = makeup, critic, intertwiner
        self.makeup_on, self.mask_uses_makeup, self._fuses = makeup_on, mask_uses_makeup, fusion != "separate"
        self.training_only = ("intertwiner",) if self._fuses else ("intertwiner", "critic")
        self._mask_features: Tensor | None = None  # from the box branch to the mask branch of one training step

    def _make_up(self, maps: list[Tensor], boxes: list[Boxes], levels: Tensor) -> Tensor:
        """Made-up features (R, C, S, S); without a make-up unit the pooled ones."""
        if self.makeup is not None and self.makeup_on == "map":
            maps = self.makeup.forward_maps([self._scale_gradient(x) for x in maps])
            return self.box_pooler(maps, boxes, levels)
        x = self._scale_gradient(self.box_pooler(maps, boxes, levels))
        return x if self.makeup is None else self.makeup(x, levels)

    def _scale_gradient(self, x: Tensor) -> Tensor:
        """Identity on what comes from the backbone. A cascade scales its gradient."""
        return x

    def _small_path(self, maps: list[Tensor], boxes: list[Boxes]) -> SmallPath:
        levels = self.box_pooler.assigner(boxes)
        made_up = self._make_up(maps, boxes, levels)
        feature = self.critic(made_up) if self._fuses else None
        return SmallPath(convert_boxes_to_pooler_format(boxes), levels, made_up, feature)

    def _predict(self, head: nn.Module, predictor: nn.Module, path: SmallPath):
        return predictor(head(path.made_up, path.critic_feature) if self._fuses else head(path.made_up))

    def _intertwine(self, maps: list[Tensor], proposals: list[Instances], path: SmallPath) -> dict[str, Tensor]:
        """Training: keep what the mask branch shares; the intertwiner's losses, if there is one."""
        classes = cat([p.gt_classes for p in proposals])
        rows = ((classes >= 0) & (classes < self.num_classes)).nonzero()[:, 0]
        if self.mask_on and self.mask_uses_makeup:
            self._mask_features = path.made_up[rows]
        self._log_levels(path.levels)
        if self.intertwiner is None:
            return {}
        own = path.critic_feature
        # Before the large path: autocast would keep weights cast without a graph, and reuse them here.
        features = self.critic(path.made_up[rows]) if own is None else own[rows]
        return self.intertwiner(
            critic=self.critic,
            pooler=self.box_pooler,
            maps=maps,
            image_sizes=[p.image_size for p in proposals],
            foreground=Foreground(path.rois[rows], path.levels[rows], classes[rows], features),
        )

    def _log_levels(self, levels: Tensor) -> None:
        """Put the numbers of RoIs per level into the storage (Table 3)."""
        assigner = self.box_pooler.assigner
        counts = torch.bincount(levels, minlength=assigner.num_levels).tolist()
        for level, count in enumerate(counts, assigner.first_level):
            get_event_storage().put_scalar(f"internet/num_rois_level{level}", count)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        if not (self.mask_on and self.mask_uses_makeup):
            return super()._forward_mask(features, instances)
        if self.training:
            x, self._mask_features = self._mask_features, None
            return self.mask_head(x, select_foreground_proposals(instances, self.num_classes)[0])
        boxes = [x.pred_boxes for x in instances]
        maps = [features[f] for f in self.box_in_features]
        return self.mask_head(self._make_up(maps, boxes, self.box_pooler.assigner(boxes)), instances)


@ROI_HEADS_REGISTRY.register()
class InterNetROIHeads(IntertwinedMixin, StandardROIHeads):
    """StandardROIHeads with make-up and critic units and, in training, the feature intertwiner.

    makeup, critic, intertwiner may each be None: none of them is the baseline with the pooler's level rule; the first
    two alone are the control with equal parameters and no intertwiner loss.
    """

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
        box_head: nn.Module,
        **kwargs,
    ):
        """box_head: an InterNetConvFCHead, or any other, which then fuses nothing. makeup_on: "roi" (Table 6) or "map".
        mask_uses_makeup: the mask head takes the box branch's made-up features; mask_pooler is then not used.
        kwargs: StandardROIHeads' arguments."""
        super().__init__(box_pooler=box_pooler, box_head=box_head, **kwargs)
        self._set_parts(box_head, makeup, critic, intertwiner, makeup_on, mask_uses_makeup)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        return {**super().from_config(cfg, input_shape), **make_units(cfg, input_shape)}

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        return make_box_parts(cfg, input_shape)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        """Returns losses in training, else detections. Sets proposal_boxes of the proposals if train_on_pred_boxes."""
        maps = [features[f] for f in self.box_in_features]
        path = self._small_path(maps, [p.proposal_boxes for p in proposals])
        predictions = self._predict(self.box_head, self.box_predictor, path)
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        losses.update(self._intertwine(maps, proposals, path))
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for p, image_boxes in zip(proposals, boxes):
                p.proposal_boxes = Boxes(image_boxes)
        return losses
