"""Base of detectors that predict at every cell of the feature maps, without proposals. N: images, A: anchors per cell,
R: anchors of all levels, Ri: of one level, K: classes."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage

from ..backbone import Backbone
from ..box_regression import Box2BoxTransform, Box2BoxTransformLinear, _dense_box_regression_loss
from ..matcher import matched_boxes, matched_classes
from .image_model import ImageModel


def permute_to_N_HWA_K(x: Tensor, K: int) -> Tensor:
    """(N, A*K, H, W) -> (N, H*W*A, K), in the order of the anchors."""
    assert x.dim() == 4, f"Dense predictions must be (N, A*K, H, W), got {tuple(x.shape)}."
    return x.unflatten(1, (-1, K)).permute(0, 3, 4, 1, 2).flatten(1, 3)


class DenseDetector(ImageModel):
    """Backbone, head, and what all dense detectors share. Subclasses implement `forward_training` and
    `forward_inference`, and set `box2box_transform` for decoding."""

    def __init__(self, backbone: Backbone, head: nn.Module, head_in_features: Sequence[str] | None = None, **kwargs):
        """head: called with the list of maps; returns a tuple of lists of maps.
        head_in_features: names of the backbone's maps; default all, by rising stride. kwargs: pixel_mean, pixel_std."""
        super().__init__(backbone, **kwargs)
        self.head, shapes = head, backbone.output_shape()
        self.head_in_features = list(head_in_features or sorted(shapes, key=lambda name: shapes[name].stride))

    def forward(self, batched_inputs: list[dict]):
        """Dicts with `image` (C, H, W) in 0-255; `instances` in training; optionally `height`, `width` of the output.
        Returns a dict of losses, or `[{"instances": Instances}]`."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            name = type(self).__name__
            assert "instances" in batched_inputs[0], f"{name} in training needs `instances` in every input."
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            return self.forward_training(images, features, predictions, gt_instances)
        results = self.forward_inference(images, features, predictions)
        return self._postprocess(results, batched_inputs, images.image_sizes)

    @abstractmethod
    def forward_training(self, images: ImageList, features, predictions, gt_instances) -> dict[str, Tensor]:
        """Losses by name."""

    @abstractmethod
    def forward_inference(self, images: ImageList, features, predictions) -> list[Instances]:
        """Detections per image, in pixels of the input."""

    def _transpose_dense_predictions(self, predictions, dims_per_anchor: list[int]) -> list[list[Tensor]]:
        """Per kind of prediction and level: (N, A*K, H, W) -> (N, H*W*A, K)."""
        num, expected = len(predictions), len(dims_per_anchor)
        assert num == expected, f"The head returned {num} predictions, expected {expected}."
        return [[permute_to_N_HWA_K(x, dim) for x in maps] for maps, dim in zip(predictions, dims_per_anchor)]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Moving average kept as a plain attribute: a resumed run starts at `initial_value`."""
        value = getattr(self, name, initial_value) * momentum + value * (1 - momentum)
        setattr(self, name, value)
        return value

    def _decode_per_level_predictions(
        self, anchors: Boxes, pred_scores: Tensor, pred_deltas: Tensor, score_thresh, topk_candidates, image_size
    ) -> Instances:
        """The best (anchor, class) pairs of one level above `score_thresh`, decoded, from scores (Ri, K) in [0, 1]
        and deltas (Ri, 4)."""
        keep = pred_scores > score_thresh
        pairs = keep.nonzero()
        scores, order = pred_scores[keep].topk(min(topk_candidates, len(pairs)))
        rows, classes = pairs[order].unbind(dim=1)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[rows], anchors.tensor[rows])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)

    def _decode_multi_level_predictions(
        self, anchors: list[Boxes], pred_scores: list[Tensor], pred_deltas: list[Tensor], *args
    ) -> Instances:
        """`_decode_per_level_predictions` of all levels, concatenated; args: its last three."""
        levels = zip(anchors, pred_scores, pred_deltas)
        return Instances.cat([self._decode_per_level_predictions(*x, *args) for x in levels])


class FocalDetector(DenseDetector):
    """RetinaNet and FCOS: focal loss on every anchor and box loss on the positive ones, both divided by a moving
    average of their number per batch; inference by a threshold, the best of each level, and NMS.
    Subclasses set `anchor_generator` and `prediction_dims`, and implement `_match` and `_scores`."""

    initial_loss_normalizer = 100
    prediction_dims: list[int]  # numbers per anchor in each output of the head: logits, deltas, others

    def __init__(
        self,
        *,
        box2box_transform: Box2BoxTransform | Box2BoxTransformLinear,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        **kwargs,
    ):
        """box_reg_loss_type, smooth_l1_beta: see `_dense_box_regression_loss`. test_score_thresh: detections score
        above it. test_topk_candidates: per level, before NMS. kwargs: DenseDetector's arguments."""
        super().__init__(**kwargs)
        self.box2box_transform, self.num_classes = box2box_transform, num_classes
        self.focal_loss_alpha, self.focal_loss_gamma = focal_loss_alpha, focal_loss_gamma
        self.smooth_l1_beta, self.box_reg_loss_type = smooth_l1_beta, box_reg_loss_type
        self.test_score_thresh, self.test_topk_candidates = test_score_thresh, test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image

    @abstractmethod
    def _match(self, gt_boxes: Boxes, anchors: list[Boxes]) -> tuple[Tensor, Tensor]:
        """Index of each anchor's ground truth (R,), and whether it is its object: 1, 0 or -1 (ignored)."""

    @abstractmethod
    def _scores(self, logits: Tensor, *others: Tensor) -> Tensor:
        """Scores (Ri, K) of one image and level, in [0, 1]."""

    def forward_training(self, images, features, predictions, gt_instances):
        logits, deltas, *others = self._transpose_dense_predictions(predictions, self.prediction_dims)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes, *others)

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Per image, the class of every anchor (R,) int64 (K: background, -1: ignored) and its matched box (R, 4),
        zeros if there is no ground truth."""
        gt_labels, gt_boxes = [], []
        for gt in gt_instances:
            index = labels = torch.zeros(sum(map(len, anchors)), dtype=torch.int64, device=anchors[0].device)
            if len(gt) > 0:
                index, labels = self._match(gt.gt_boxes, anchors)
            gt_labels.append(matched_classes(gt.gt_classes, index, labels, self.num_classes))
            gt_boxes.append(matched_boxes(gt.gt_boxes, index))
        return gt_labels, gt_boxes

    def losses(self, anchors: list[Boxes], pred_logits, gt_labels, pred_anchor_deltas, gt_boxes) -> dict[str, Tensor]:
        """Lists of pred_* per level, (N, Ri, K) and (N, Ri, 4), and gt_* per image from `label_anchors`."""
        labels = torch.stack(gt_labels)
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        num_pos = positive.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_pos / len(gt_labels))
        normalizer = self._ema_update("loss_normalizer", max(num_pos, 1), self.initial_loss_normalizer)
        logits = cat(pred_logits, dim=1)[valid]
        target = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1].to(logits.dtype)
        focal = sigmoid_focal_loss_jit(logits, target, self.focal_loss_alpha, self.focal_loss_gamma, "sum")
        pairs = anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes
        box = _dense_box_regression_loss(*pairs, positive, self.box_reg_loss_type, self.smooth_l1_beta)
        return {"loss_cls": focal / normalizer, "loss_box_reg": box / normalizer}

    def forward_inference(self, images, features, predictions):
        predictions = self._transpose_dense_predictions(predictions, self.prediction_dims)
        anchors, results = self.anchor_generator(features), []
        for i, size in enumerate(images.image_sizes):
            logits, deltas, *others = ([x[i] for x in levels] for levels in predictions)
            scores = [self._scores(*level) for level in zip(logits, *others)]
            results.append(self.inference_single_image(anchors, scores, deltas, size))
        return results

    def inference_single_image(
        self, anchors: list[Boxes], pred_scores: list[Tensor], pred_deltas: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """Detections of one image from scores (Ri, K) and deltas (Ri, 4) per level, after NMS."""
        limits = self.test_score_thresh, self.test_topk_candidates
        found = self._decode_multi_level_predictions(anchors, pred_scores, pred_deltas, *limits, image_size)
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]
