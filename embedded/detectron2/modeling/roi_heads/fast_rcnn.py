"""Box classification and regression (Fast R-CNN, arXiv:1504.08083), and class-wise NMS.
R: RoIs of the whole batch, K: foreground classes; class K is the background."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from ..box_regression import Box2BoxTransform, _dense_box_regression_loss

# Logits (R, K + 1), deltas (R, 4K) or (R, 4)
Predictions = tuple[Tensor, Tensor]


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """`fast_rcnn_inference_single_image` of every image: the detections, and their rows."""
    results = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes)
    ]
    return [r[0] for r in results], [r[1] for r in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Detections of one image, sorted by score: score > score_thresh, NMS within each class.

    Args:
        boxes: (R, 4K) or, shared by all classes, (R, 4); xyxy in pixels.
        scores: (R, K + 1).
        image_shape: (h, w), to which boxes are clipped.
        topk_per_image: negative keeps all.
    Returns:
        pred_boxes, scores, pred_classes; and each one's row among the rows that are finite
        (the others are dropped first).
    """
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]
    scores = scores[:, :-1]
    candidate = scores > score_thresh
    rows, classes = candidate.nonzero().unbind(1)
    scores = scores[candidate]
    boxes = boxes.unflatten(1, (-1, 4))
    boxes = Boxes(boxes[rows, 0] if boxes.shape[1] == 1 else boxes[candidate])
    boxes.clip(image_shape)

    keep = batched_nms(boxes.tensor, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep])
    return result, rows[keep]


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put the accuracy of logits (R, K + 1), and of their foreground rows, into the storage."""
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    correct = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    missed = foreground & (predicted == background)
    counts = torch.stack([correct.sum(), foreground.sum(), (correct & foreground).sum(), missed.sum()])
    num_correct, num_fg, num_fg_correct, num_missed = counts.tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / gt_classes.numel())
    if num_fg > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_fg_correct / num_fg)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_fg)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, `cls_score` (K + 1 logits, background last) and `bbox_pred` (4K deltas,
    or 4), with their losses and inference.

    Args:
        input_shape: of one RoI's features; an int means that many channels.
        test_topk_per_image: detections to keep; negative keeps all.
        loss_weight: one for both losses, or by loss name (missing: 1).
        use_sigmoid_ce: K sigmoids in place of a softmax over K + 1.
        use_fed_loss, get_fed_loss_cls_weights, fed_loss_num_classes: Detectron2's arguments for
            the federated loss, which this engine does not have.
    """

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
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.num_classes = num_classes
        self.cls_score = nn.Linear(size, num_classes + 1)
        box_classes = 1 if cls_agnostic_bbox_reg else num_classes
        self.bbox_pred = nn.Linear(size, box_classes * len(box2box_transform.weights))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.box2box_transform = box2box_transform
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.use_sigmoid_ce = use_sigmoid_ce
        if not isinstance(loss_weight, Mapping):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec | int):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
        }

    def forward(self, x: Tensor) -> Predictions:
        """x: (R, ...). Returns logits (R, K + 1) and deltas (R, 4K) or (R, 4)."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Losses of `forward`'s output on proposals with `proposal_boxes`, `gt_classes` and,
        where the image has ground truth, `gt_boxes`."""
        logits, deltas = predictions
        if proposals:
            gt_classes = cat([p.gt_classes for p in proposals])
            boxes = cat([p.proposal_boxes.tensor for p in proposals])
            assert not boxes.requires_grad, "Proposals should not require gradients!"
            gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        else:
            gt_classes = torch.empty(0, dtype=torch.int64, device=logits.device)
            boxes = gt_boxes = torch.empty(0, 4, device=logits.device)
        _log_classification_stats(logits, gt_classes)
        if self.use_sigmoid_ce:
            classification = self.sigmoid_cross_entropy_loss(logits, gt_classes)
        else:
            classification = cross_entropy(logits, gt_classes, reduction="mean")
        losses = {"loss_cls": classification, "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes)}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def sigmoid_cross_entropy_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Sum over the K classes, mean over the rows; 0 with a graph if there are none."""
        target = F.one_hot(gt_classes, self.num_classes + 1).to(logits.dtype)[:, :-1]
        loss = F.binary_cross_entropy_with_logits(logits[:, :-1], target, reduction="sum")
        return loss / max(gt_classes.numel(), 1)

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Sum over the foreground rows, divided by the number of all sampled rows: every
        foreground box then weighs the same, however many of them its image has."""
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        box_dim = proposal_boxes.shape[1]
        if pred_deltas.shape[1] == box_dim:
            deltas = pred_deltas[foreground]
        else:
            deltas = pred_deltas.unflatten(1, (self.num_classes, box_dim))
            deltas = deltas[foreground, gt_classes[foreground]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[foreground]],
            self.box2box_transform,
            [deltas.unsqueeze(0)],
            [gt_boxes[foreground]],
            ...,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1.0)

    def inference(self, predictions: Predictions, proposals: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        """See fast_rcnn_inference."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Decoded boxes per image, (R_i, 4K) or (R_i, 4)."""
        if not proposals:
            return []
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        boxes = self.box2box_transform.apply_deltas(predictions[1], boxes)
        return boxes.split([len(p) for p in proposals])

    def predict_boxes_for_gt_classes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Decoded boxes per image (R_i, 4) of the `gt_classes` (background: of the last class)."""
        boxes = self.predict_boxes(predictions, proposals)
        if not proposals or boxes[0].shape[1] == 4:
            return boxes
        results = []
        for image_boxes, p in zip(boxes, proposals):
            index = p.gt_classes.clamp(0, self.num_classes - 1).view(-1, 1, 1).expand(-1, 1, 4)
            results.append(image_boxes.unflatten(1, (-1, 4)).gather(1, index)[:, 0])
        return results

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Probabilities per image (R_i, K + 1)."""
        logits = predictions[0]
        probs = logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)
        return probs.split([len(p) for p in proposals])
