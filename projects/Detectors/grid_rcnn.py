"""Grid R-CNN (arXiv:1811.12030) with the settings of Grid R-CNN Plus (arXiv:1906.05688): RoI heads whose boxes come
from heatmaps of 3 x 3 points. R: RoIs of the whole batch, K: foreground classes; class K is the background."""

import torch
from torch import Tensor

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.structures import Boxes, Instances

from .grid_head import GridHead
from .grid_points import decode_boxes, jitter_boxes

BOX_KEYS = ("box2box_transform", "cls_agnostic_bbox_reg", "smooth_l1_beta", "box_reg_loss_type", "loss_weight")


class ClassificationOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers` without box regression: every class's box is the proposal."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        test_score_thresh: float = 0.03,
        test_nms_thresh: float = 0.3,
        test_topk_per_image: int = 100,
        **kwargs,
    ):
        """kwargs: FastRCNNOutputLayers' arguments that are not about boxes."""
        super().__init__(
            input_shape,
            num_classes=num_classes,
            test_score_thresh=test_score_thresh,
            test_nms_thresh=test_nms_thresh,
            test_topk_per_image=test_topk_per_image,
            box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            cls_agnostic_bbox_reg=True,
            **kwargs,
        )
        del self.bbox_pred

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        arguments = super().from_config(cfg, input_shape)
        return {key: value for key, value in arguments.items() if key not in BOX_KEYS}

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x: (R, ...). Returns logits (R, K + 1), and None in the place of deltas."""
        return self.cls_score(x.flatten(1)), None

    def losses(self, predictions: tuple[Tensor, None], proposals: list[Instances]) -> dict[str, Tensor]:
        """loss_cls of `forward`'s output on proposals with `gt_classes`; 0, with a graph, if R is 0."""
        logits = predictions[0]
        if len(logits) == 0:
            return {"loss_cls": logits.sum() * 0.0}
        gt_classes = cat([p.gt_classes for p in proposals])
        _log_classification_stats(logits, gt_classes)
        loss = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        return {"loss_cls": loss(logits, gt_classes)}

    def predict_boxes(self, predictions: tuple[Tensor, None], proposals: list[Instances]) -> list[Tensor]:
        """The proposals' boxes (R_i, 4), xyxy in pixels."""
        return [p.proposal_boxes.tensor for p in proposals]


@ROI_HEADS_REGISTRY.register()
class GridROIHeads(StandardROIHeads):
    """Boxes are classified as proposed, then moved by the grid head.

    Training: the grid head sees the positive RoIs, at most `max_samples` of a process, jittered. Inference:
    classification, NMS and the limit of detections first, on the proposals' boxes; the grid head on what is left.
    Scores and order stay. Masks, if there are any, are read from the moved boxes.
    """

    @configurable
    def __init__(
        self, *, grid_pooler: ROIPooler, grid_head: GridHead, jitter: float = 0.15, max_samples: int = 192, **kwargs
    ):
        """grid_pooler reads `box_in_features`. jitter: fraction of a RoI's size, see `jitter_boxes`. kwargs:
        StandardROIHeads' arguments. ValueError where they do not fit together."""
        super().__init__(**kwargs)
        side = grid_head.map_size // 2
        if tuple(grid_pooler.output_size) != (side, side):
            raise ValueError(
                f"GridROIHeads: the grid pooler gives {tuple(grid_pooler.output_size)} and the grid head was built for "
                f"({side}, {side}): make grid_pooler.output_size and grid_head.input_shape equal."
            )
        if not 0 <= jitter < 1 or max_samples < 1:
            raise ValueError(
                f"GridROIHeads: jitter (JITTER) must be in [0, 1) and max_samples (MAX_SAMPLES) at least 1, "
                f"got {jitter} and {max_samples}."
            )
        if self.train_on_pred_boxes:
            raise ValueError(
                "GridROIHeads trains on the proposals' boxes: set train_on_pred_boxes "
                "(MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES) to False."
            )
        self.grid_pooler, self.grid_head = grid_pooler, grid_head
        self.jitter, self.max_samples = jitter, max_samples

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        node = cfg.MODEL.ROI_GRID_HEAD
        shapes = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
        side, scales = node.POOLER_RESOLUTION, [1.0 / s.stride for s in shapes]
        return {
            **super().from_config(cfg, input_shape),
            "grid_pooler": ROIPooler(side, scales, node.POOLER_SAMPLING_RATIO, node.POOLER_TYPE),
            "grid_head": GridHead(cfg, ShapeSpec(channels=shapes[0].channels, height=side, width=side)),
            "jitter": node.JITTER,
            "max_samples": node.MAX_SAMPLES,
        }

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]):
        parts = super()._init_box_head(cfg, input_shape)
        return {**parts, "box_predictor": ClassificationOutputLayers(cfg, parts["box_head"].output_shape)}

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]):
        """Returns losses in training, else detections."""
        result = super()._forward_box(features, proposals)
        maps = [features[name] for name in self.box_in_features]
        if self.training:
            return {**result, **self._grid_losses(maps, proposals)}
        return self._refine(maps, result)

    def _grid_losses(self, maps: list[Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        with torch.no_grad():
            positives = self._sample_positives(select_foreground_proposals(proposals, self.num_classes)[0])
            rois = [Boxes(jitter_boxes(p.proposal_boxes.tensor, self.jitter)) for p in positives]
            for boxes, p in zip(rois, positives):
                boxes.clip(p.image_size)
            flat_rois = cat([boxes.tensor for boxes in rois])
            # images without ground truth have no gt_boxes, and no positives
            gt_boxes = cat([p.gt_boxes.tensor if p.has("gt_boxes") else p.proposal_boxes.tensor for p in positives])
        return self.grid_head.losses(self.grid_pooler(maps, rois), flat_rois, gt_boxes)

    def _sample_positives(self, positives: list[Instances]) -> list[Instances]:
        """A random choice of at most `max_samples` of all images' instances."""
        counts = [len(p) for p in positives]
        if sum(counts) <= self.max_samples:
            return positives
        keep = torch.randperm(sum(counts), device=positives[0].gt_classes.device) < self.max_samples
        return [p[mask] for p, mask in zip(positives, keep.split(counts))]

    def _refine(self, maps: list[Tensor], detections: list[Instances]) -> list[Instances]:
        """Put the grid head's boxes, clipped to the images, into `pred_boxes`."""
        boxes = [d.pred_boxes for d in detections]
        counts = [len(b) for b in boxes]
        if sum(counts) == 0:
            return detections
        logits, _ = self.grid_head(self.grid_pooler(maps, boxes))
        decoded = decode_boxes(logits, cat([b.tensor for b in boxes]), self.grid_head.grid_size)
        for d, image_boxes in zip(detections, decoded.split(counts)):
            d.pred_boxes = Boxes(image_boxes)
            d.pred_boxes.clip(d.image_size)
        return detections
