"""RoI heads: label and sample proposals, pool their features, classify, regress, segment.
K: foreground classes; class K is the background."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

from ..matcher import Matcher, matched_classes
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.ROI_HEADS.NAME`."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(proposals: list[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """Each image's proposals whose gt_classes is neither bg_label nor -1, and the masks (R_i,) that select them."""
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask.nonzero()[:, 0]] for p, mask in zip(proposals, masks)], masks


class ROIHeads(nn.Module):
    """Base class: matching proposals to the ground truth, and sampling."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ):
        super().__init__()
        self.num_classes, self.proposal_matcher = num_classes, proposal_matcher
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg):
        heads = cfg.MODEL.ROI_HEADS
        keys = ("NUM_CLASSES", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "PROPOSAL_APPEND_GT")
        matcher = Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality_matches=False)
        return {**{key.lower(): heads[key] for key in keys}, "proposal_matcher": matcher}

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor):
        """Returns the sampled rows (foreground first) and their classes (K: background)."""
        classes = matched_classes(gt_classes, matched_idxs, matched_labels, self.num_classes)
        limits = self.batch_size_per_image, self.positive_fraction, self.num_classes
        sampled = torch.cat(subsample_labels(classes, *limits))
        return sampled, classes[sampled]

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Sampled proposals with `gt_classes` and every `gt_*` field of the matched target; those of an image without
        targets have gt_classes alone."""
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        results = []
        for p, t in zip(proposals, targets):
            matches, labels = self.proposal_matcher(pairwise_iou(t.gt_boxes, p.proposal_boxes))
            sampled, gt_classes = self._sample_proposals(matches, labels, t.gt_classes)
            p = p[sampled]
            p.gt_classes = gt_classes
            for name, value in t.get_fields().items() if len(t) > 0 else ():
                if name.startswith("gt_") and not p.has(name):
                    p.set(name, value[matches[sampled]])
            results.append(p)
        self._put_counts("roi_head", results)
        return results

    def _put_counts(self, prefix: str, proposals: list[Instances]) -> None:
        """Put the mean numbers per image of foreground and background proposals into the storage."""
        background = sum(int((p.gt_classes == self.num_classes).sum()) for p in proposals)
        for kind, num in (("fg", sum(map(len, proposals)) - background), ("bg", background)):
            get_event_storage().put_scalar(f"{prefix}/num_{kind}_samples", num / len(proposals))

    def forward(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances], targets=None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns (proposals, losses) in training, which needs targets (Instances per image), else (detections, {})."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")


def _pooler_and_shape(section, in_features: Sequence[str], input_shape: dict[str, ShapeSpec]):
    """The pooler of cfg's `section` (ROI_BOX_HEAD or ROI_MASK_HEAD), and the ShapeSpec of what it pools for one RoI.
    All of in_features must have equal channels."""
    shapes = [input_shape[f] for f in in_features]
    channels = {s.channels for s in shapes}
    assert len(channels) == 1, f"All of {list(in_features)} need the same channels, got {channels}."
    side, scales = section.POOLER_RESOLUTION, tuple(1.0 / s.stride for s in shapes)
    pooler = ROIPooler(side, scales, section.POOLER_SAMPLING_RATIO, section.POOLER_TYPE)
    return pooler, ShapeSpec(channels=channels.pop(), height=side, width=side)


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Box branch and, if `mask_in_features` is given, mask branch, each with its own pooler.
    mask_pooler: None hands the features (dict of maps) to the mask head as they are. train_on_pred_boxes: train the
    mask branch on the box branch's output. kwargs: ROIHeads' arguments."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ):
        keypoint = [kwargs.pop(f"keypoint_{name}", None) for name in ("in_features", "pooler", "head")]
        if any(x is not None for x in keypoint):
            raise ValueError("keypoint_*: the embedded engine has no keypoint head; leave it out.")
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler, self.box_head, self.box_predictor = box_pooler, box_head, box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features, self.mask_pooler, self.mask_head = mask_in_features, mask_pooler, mask_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        if cfg.MODEL.KEYPOINT_ON:
            raise ValueError("MODEL.KEYPOINT_ON: the embedded engine has no keypoint head.")
        ret = super().from_config(cfg)
        ret["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        # A subclass may make these instance methods to build its heads in its own __init__.
        for init in (cls._init_box_head, cls._init_mask_head):
            if inspect.ismethod(init):
                ret.update(init(cfg, input_shape))
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler, shape = _pooler_and_shape(cfg.MODEL.ROI_BOX_HEAD, in_features, input_shape)
        head = build_box_head(cfg, shape)
        predictor = FastRCNNOutputLayers(cfg, head.output_shape)
        return {"box_in_features": in_features, "box_pooler": pooler, "box_head": head, "box_predictor": predictor}

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features, section = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_MASK_HEAD
        pooler, shape = None, {f: input_shape[f] for f in in_features}
        if section.POOLER_TYPE:
            pooler, shape = _pooler_and_shape(section, in_features, input_shape)
        return {"mask_in_features": in_features, "mask_pooler": pooler, "mask_head": build_mask_head(cfg, shape)}

    def forward(self, images, features, proposals, targets=None):
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets, "RoI heads need targets in training."
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals)
        return proposals, {**losses, **self._forward_mask(features, proposals)}

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Run the mask branch on instances with pred_boxes and pred_classes, at inference only."""
        assert not self.training, "forward_with_given_boxes is for inference: call eval()."
        given = all(x.has("pred_boxes") and x.has("pred_classes") for x in instances)
        assert given, "forward_with_given_boxes needs pred_boxes and pred_classes."
        return self._forward_mask(features, instances)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        """Returns losses in training, else detections. Sets proposal_boxes of the proposals if train_on_pred_boxes."""
        features = [features[f] for f in self.box_in_features]
        features = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(features))
        if not self.training:
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for p, image_boxes in zip(proposals, boxes):
                p.proposal_boxes = Boxes(image_boxes)
        return losses

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        """Returns losses (of the foreground proposals) in training, else instances with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        features = {f: features[f] for f in self.mask_in_features}
        if self.mask_pooler is not None:
            boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
            features = self.mask_pooler(list(features.values()), boxes)
        return self.mask_head(features, instances)
