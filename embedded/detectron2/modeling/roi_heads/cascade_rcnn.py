"""Cascade R-CNN (arXiv:1712.00726): a sequence of box heads, each refining the boxes of the one before and trained at
a higher IoU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from detectron2.config import configurable
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform
from ..matcher import Matcher, matched_boxes, matched_classes
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
    """Box stages in sequence; masks are trained on the proposals of the first. box_heads, box_predictors,
    proposal_matchers: one per stage; the first matcher samples. kwargs: StandardROIHeads' but proposal_matcher."""

    @configurable
    def __init__(
        self, *, box_heads: Sequence, box_predictors: Sequence, proposal_matchers: Sequence[Matcher], **kwargs
    ):
        assert "proposal_matcher" not in kwargs, "CascadeROIHeads takes proposal_matchers, and no proposal_matcher."
        nums = len(box_heads), len(box_predictors), len(proposal_matchers)
        assert len(set(nums)) == 1, f"Every stage needs a head, a predictor and a matcher, got {nums}."
        stages = {"box_head": nn.ModuleList(box_heads), "box_predictor": nn.ModuleList(box_predictors)}
        super().__init__(**stages, proposal_matcher=proposal_matchers[0], **kwargs)
        self.num_cascade_stages, self.proposal_matchers = len(box_heads), proposal_matchers

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret.pop("proposal_matcher")
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features, section = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        ious, weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS, cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        assert len(ious) == len(weights), f"{len(ious)} IOUS but {len(weights)} BBOX_REG_WEIGHTS."
        assert section.CLS_AGNOSTIC_BBOX_REG, "CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True."
        sampling = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
        assert ious[0] == sampling, f"IOUS[0] is {ious[0]}: must equal MODEL.ROI_HEADS.IOU_THRESHOLDS[0], {sampling}."
        pooler, shape = _pooler_and_shape(section, in_features, input_shape)
        heads, predictors = [], []
        for stage_weights in weights:
            heads.append(build_box_head(cfg, shape))
            transform = Box2BoxTransform(weights=stage_weights)
            predictors.append(FastRCNNOutputLayers(cfg, heads[-1].output_shape, box2box_transform=transform))
        matchers = [Matcher([iou], [0, 1]) for iou in ious]
        stages = {"box_heads": heads, "box_predictors": predictors, "proposal_matchers": matchers}
        return {"box_in_features": in_features, "box_pooler": pooler, **stages}

    def forward(self, images, features, proposals, targets=None):
        """As StandardROIHeads; every stage needs the targets."""
        if not self.training:
            return super().forward(images, features, proposals)
        assert targets, "RoI heads need targets in training."
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        return proposals, {**losses, **self._forward_mask(features, proposals)}

    def _forward_box(self, features, proposals, targets=None):
        """Returns losses in training (which needs targets), else detections."""
        features = [features[f] for f in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        losses, probs, predictions = {}, [], None
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                boxes = self.box_predictor[stage - 1].predict_boxes(predictions, proposals)
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
        if self.training:
            return losses
        boxes = predictor.predict_boxes(predictions, proposals)
        scores = [sum(image_probs) * (1.0 / self.num_cascade_stages) for image_probs in zip(*probs)]
        limits = predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        return fast_rcnn_inference(boxes, scores, image_sizes, *limits)[0]

    @torch.no_grad()
    def _match_and_label_boxes(self, proposals: list[Instances], stage: int, targets: list[Instances]):
        """Set gt_classes and gt_boxes of this stage's matcher on all proposals, in place."""
        for p, t in zip(proposals, targets):
            matches, labels = self.proposal_matchers[stage](pairwise_iou(t.gt_boxes, p.proposal_boxes))
            p.gt_classes = matched_classes(t.gt_classes, matches, labels, self.num_classes)
            p.gt_boxes = Boxes(matched_boxes(t.gt_boxes, matches))
        self._put_counts(f"stage{stage}/roi_head", proposals)
        return proposals

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int):
        """The stage's predictor's output. The features get the mean of the stages' gradients."""
        x = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        if self.training:
            x = _ScaleGradient.apply(x, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](x))

    def _create_proposals_from_boxes(self, boxes: Sequence[Tensor], image_sizes) -> list[Instances]:
        """Boxes (R_i, 4) per image -> proposals: detached, clipped, not empty in training."""
        proposals = [Instances(size, proposal_boxes=Boxes(b.detach())) for b, size in zip(boxes, image_sizes)]
        for p in proposals:
            p.proposal_boxes.clip(p.image_size)
        # At inference all are kept: the stages' scores are averaged row by row.
        return [p[p.proposal_boxes.nonempty()] for p in proposals] if self.training else proposals
