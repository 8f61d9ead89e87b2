"""Cascade R-CNN (arXiv:1712.00726): a sequence of box heads, each refining the boxes of the one
before and trained at a higher IoU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from detectron2.config import configurable
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform
from ..matcher import Matcher
from ..poolers import ROIPooler
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from .roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, _pooler_and_shape


class _ScaleGradient(Function):
    """Identity whose gradient is multiplied by `scale`."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.scale, None


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """Box stages in sequence; masks are trained on the proposals of the first.

    Args:
        box_heads, box_predictors, proposal_matchers: one per stage; the first matcher samples.
        kwargs: StandardROIHeads' arguments but proposal_matcher.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        proposal_matchers: Sequence[Matcher],
        **kwargs,
    ):
        assert "proposal_matcher" not in kwargs, (
            "CascadeROIHeads takes proposal_matchers, one per stage, and no proposal_matcher."
        )
        assert len(box_heads) == len(box_predictors) == len(proposal_matchers), (
            f"Every stage needs a head, a predictor and a matcher, got {len(box_heads)}, "
            f"{len(box_predictors)}, {len(proposal_matchers)}."
        )
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.num_cascade_stages = len(box_heads)
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret.pop("proposal_matcher")
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features, section = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        ious = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        assert len(ious) == len(weights), f"{len(ious)} IOUS but {len(weights)} BBOX_REG_WEIGHTS."
        assert section.CLS_AGNOSTIC_BBOX_REG, (
            "CascadeROIHeads regresses one box per RoI: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
        )
        sampling_iou = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
        assert ious[0] == sampling_iou, (
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS starts with {ious[0]}, "
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS with {sampling_iou}: they must be equal."
        )
        pooler, shape = _pooler_and_shape(section, in_features, input_shape)
        heads, predictors = [], []
        for stage_weights in weights:
            heads.append(build_box_head(cfg, shape))
            predictors.append(
                FastRCNNOutputLayers(
                    cfg, heads[-1].output_shape, box2box_transform=Box2BoxTransform(weights=stage_weights)
                )
            )
        return {
            "box_in_features": in_features,
            "box_pooler": pooler,
            "box_heads": heads,
            "box_predictors": predictors,
            "proposal_matchers": [Matcher([iou], [0, 1]) for iou in ious],
        }

    def forward(self, images, features, proposals, targets=None):
        """As StandardROIHeads; every stage needs the targets."""
        if not self.training:
            return super().forward(images, features, proposals)
        assert targets, "RoI heads need targets in training."
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        losses.update(self._forward_mask(features, proposals))
        return proposals, losses

    def _forward_box(self, features, proposals, targets=None):
        """Returns losses in training (which needs targets), else detections."""
        features = [features[f] for f in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        losses, probs, boxes = {}, [], None
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(features, proposals, stage)
            if self.training:
                with get_event_storage().name_scope(f"stage{stage}"):
                    stage_losses = predictor.losses(predictions, proposals)
                losses.update({f"{k}_stage{stage}": v for k, v in stage_losses.items()})
            else:
                probs.append(predictor.predict_probs(predictions, proposals))
            if not self.training or stage + 1 < self.num_cascade_stages:
                boxes = predictor.predict_boxes(predictions, proposals)
        if self.training:
            return losses
        scores = [sum(image_probs) * (1.0 / self.num_cascade_stages) for image_probs in zip(*probs)]
        return fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )[0]

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Set gt_classes and gt_boxes of this stage's matcher on all proposals, in place."""
        num_fg, num_bg = 0, 0
        for p, t in zip(proposals, targets):
            iou = pairwise_iou(t.gt_boxes, p.proposal_boxes)
            matches, labels = self.proposal_matchers[stage](iou)
            if len(t) > 0:
                p.gt_classes = t.gt_classes[matches].masked_fill(labels == 0, self.num_classes)
                p.gt_boxes = t.gt_boxes[matches]
            else:
                p.gt_classes = torch.full_like(matches, self.num_classes)
                p.gt_boxes = Boxes(torch.zeros_like(p.proposal_boxes.tensor))
            positive = int((labels == 1).sum())
            num_fg += positive
            num_bg += labels.numel() - positive
        storage = get_event_storage()
        prefix = f"stage{stage}/roi_head"
        storage.put_scalar(f"{prefix}/num_fg_samples", num_fg / len(proposals))
        storage.put_scalar(f"{prefix}/num_bg_samples", num_bg / len(proposals))
        return proposals

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int):
        """The stage's predictor's output. The gradient that the features get is averaged over
        the stages, since every stage adds its own."""
        x = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        if self.training:
            x = _ScaleGradient.apply(x, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](x))

    def _create_proposals_from_boxes(
        self, boxes: Sequence[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Boxes (R_i, 4) per image -> proposals: detached, clipped, not empty in training."""
        proposals = []
        for image_boxes, size in zip(boxes, image_sizes):
            image_boxes = Boxes(image_boxes.detach())
            image_boxes.clip(size)
            if self.training:
                # At inference all are kept: the stages' scores are averaged row by row.
                image_boxes = image_boxes[image_boxes.nonempty()]
            proposals.append(Instances(size, proposal_boxes=image_boxes))
        return proposals
