"""Box classification and regression (Fast R-CNN, arXiv:1504.08083), and class-wise NMS. R: RoIs of the whole batch,
K: foreground classes; class K is the background."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..convs import normal_fill

# Logits (R, K + 1), deltas (R, 4K) or (R, 4)
Predictions = tuple[Tensor, Tensor]


def fast_rcnn_inference(
    boxes: list[Tensor], scores: list[Tensor], image_shapes, score_thresh: float, nms_thresh: float, topk_per_image: int
) -> tuple[list[Instances], list[Tensor]]:
    """`fast_rcnn_inference_single_image` of every image: the detections, and their rows."""
    limits = score_thresh, nms_thresh, topk_per_image
    results = [fast_rcnn_inference_single_image(*image, *limits) for image in zip(boxes, scores, image_shapes)]
    return [r[0] for r in results], [r[1] for r in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor, scores: Tensor, image_shape, score_thresh: float, nms_thresh: float, topk_per_image: int
) -> tuple[Instances, Tensor]:
    """Detections of one image, sorted by score: score > score_thresh, NMS within each class.
    boxes: (R, 4K) or, shared by all classes, (R, 4); xyxy in pixels. scores: (R, K + 1).
    image_shape: (h, w), to which boxes are clipped. topk_per_image: negative keeps all.
    Returns pred_boxes, scores, pred_classes; and each one's row among the finite rows (others are dropped first)."""
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    boxes, scores = boxes[finite].unflatten(1, (-1, 4)), scores[finite, :-1]
    candidate = scores > score_thresh
    rows, classes = candidate.nonzero().unbind(1)
    scores = scores[candidate]
    boxes = Boxes(boxes[rows, 0] if boxes.shape[1] == 1 else boxes[candidate])
    boxes.clip(image_shape)
    keep = batched_nms(boxes.tensor, scores, classes, nms_thresh)
    keep = keep if topk_per_image < 0 else keep[:topk_per_image]
    return Instances(image_shape, pred_boxes=boxes, scores=scores, pred_classes=classes)[keep], rows[keep]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put the accuracy of logits (R, K + 1), and of their foreground rows, into the storage."""
    if gt_classes.numel() == 0:
        return
    background, predicted = pred_logits.shape[1] - 1, pred_logits.argmax(dim=1)
    correct, foreground = predicted == gt_classes, (gt_classes >= 0) & (gt_classes < background)
    missed = foreground & (predicted == background)
    counts = torch.stack([correct.sum(), foreground.sum(), (correct & foreground).sum(), missed.sum()])
    num_correct, num_fg, num_fg_correct, num_missed = counts.tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / gt_classes.numel())
    if num_fg > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_fg_correct / num_fg)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_fg)


class FastRCNNOutputLayers(nn.Module):
    """Linear layers `cls_score` (K + 1 logits, background last) and `bbox_pred` (4K deltas, or 4), losses, inference.
    input_shape: of one RoI's features; an int means that many channels. test_topk_per_image: negative keeps all.
    loss_weight: one for both losses, or by loss name (missing: 1). use_sigmoid_ce: K sigmoids, no softmax over K + 1.
    use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: of the federated loss, which is left out here."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | Mapping[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights=None,
        fed_loss_num_classes: int = 50,
    ):
        super().__init__()
        if use_fed_loss:
            raise ValueError("use_fed_loss: the embedded engine has no federated loss; use upstream Detectron2 for it.")
        s = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        size = s.channels * (s.width or 1) * (s.height or 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.cls_score = nn.Linear(size, num_classes + 1)
        self.bbox_pred = nn.Linear(size, num_boxes * len(box2box_transform.weights))
        normal_fill(self.cls_score, std=0.01)
        normal_fill(self.bbox_pred, std=0.001)
        self.num_classes, self.box2box_transform = num_classes, box2box_transform
        self.test_score_thresh, self.test_nms_thresh = test_score_thresh, test_nms_thresh
        self.test_topk_per_image, self.use_sigmoid_ce = test_topk_per_image, use_sigmoid_ce
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        names = ("loss_cls", "loss_box_reg")
        self.loss_weight = loss_weight if isinstance(loss_weight, Mapping) else dict.fromkeys(names, loss_weight)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | int):
        head = cfg.MODEL.ROI_BOX_HEAD
        keys = ("CLS_AGNOSTIC_BBOX_REG", "SMOOTH_L1_BETA", "USE_FED_LOSS", "USE_SIGMOID_CE")
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            **{key.lower(): head[key] for key in keys},
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
        }

    def forward(self, x: Tensor) -> Predictions:
        """x: (R, ...). Returns logits (R, K + 1) and deltas (R, 4K) or (R, 4)."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Losses of `forward`'s output on proposals with `proposal_boxes`, `gt_classes` and, where the image has
        ground truth, `gt_boxes`."""
        logits, deltas = predictions
        if not proposals:  # 0, with a graph
            return {"loss_cls": logits.sum() * 0, "loss_box_reg": deltas.sum() * 0}
        gt_classes = cat([p.gt_classes for p in proposals])
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        assert not boxes.requires_grad, "Proposals should not require gradients!"
        _log_classification_stats(logits, gt_classes)
        cls_loss = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        box_loss = self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes)
        losses = {"loss_cls": cls_loss(logits, gt_classes), "loss_box_reg": box_loss}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def sigmoid_cross_entropy_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Sum over the K classes, mean over the rows; 0 with a graph if there are none."""
        target = F.one_hot(gt_classes, self.num_classes + 1).to(logits.dtype)[:, :-1]
        loss = F.binary_cross_entropy_with_logits(logits[:, :-1], target, reduction="sum")
        return loss / max(gt_classes.numel(), 1)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Sum over the foreground rows, divided by the number of all sampled rows: every foreground box then weighs
        the same, however many of them its image has."""
        rows = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        deltas = pred_deltas.unflatten(1, (-1, proposal_boxes.shape[1]))  # one row per class, or one for all
        deltas = deltas[rows, gt_classes[rows] if deltas.shape[1] > 1 else 0]
        pairs = [proposal_boxes[rows]], self.box2box_transform, [deltas.unsqueeze(0)], [gt_boxes[rows]]
        loss = _dense_box_regression_loss(*pairs, ..., self.box_reg_loss_type, self.smooth_l1_beta)
        return loss / max(gt_classes.numel(), 1.0)

    def inference(self, predictions: Predictions, proposals: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        """See fast_rcnn_inference."""
        boxes, probs = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        limits = self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image
        return fast_rcnn_inference(boxes, probs, [p.image_size for p in proposals], *limits)

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Decoded boxes per image, (R_i, 4K) or (R_i, 4)."""
        if not proposals:
            return []
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], boxes).split([len(p) for p in proposals])

    def predict_boxes_for_gt_classes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Decoded boxes per image (R_i, 4) of the `gt_classes` (background: of the last class)."""
        results = []
        for boxes, p in zip(self.predict_boxes(predictions, proposals), proposals):
            boxes = boxes.unflatten(1, (-1, 4))
            classes = p.gt_classes.clamp(0, boxes.shape[1] - 1)
            results.append(boxes[torch.arange(len(boxes), device=boxes.device), classes])
        return results

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Probabilities per image (R_i, K + 1)."""
        probs = predictions[0].sigmoid() if self.use_sigmoid_ce else predictions[0].softmax(dim=-1)
        return probs.split([len(p) for p in proposals])
