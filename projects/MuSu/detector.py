"""MuSu (arXiv:2109.05986): a dense detector whose two heads choose each other's training samples.

Backbone, FPN and head are Detectron2's (`RetinaNetHead` as it is); assignment and losses are this folder's. With
another assigner it is that assigner's detector: `ATSSAssigner` makes the baseline. B, N, K, M as in pairs.py.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from shared.distributed import sum_over_workers
from shared.errors import UserError
from shared.modeling.fpn import build_fpn

from .assign import Assignment
from .config import assigner_of, cls_loss_of
from .diagnostics import describe
from .losses import QualityFocal, TwoSidedFocal, box_loss, classification_loss, object_scales, soft_labels
from .pairs import Grid, Scene

REG_PARAMS = ("delta", "ltrb")
NORMALIZERS = ("weight_sum_ema", "weight_sum", "num_gt")
INITIAL_NORMALIZER = 100.0


class Assigner(Protocol):
    def __call__(self, scene: Scene) -> Assignment: ...


def tiled_anchors(
    *, strides: list[int], scale: float = 8.0, octaves: int = 1, aspect_ratios: list[float] = (1.0,)
) -> DefaultAnchorGenerator:
    """`octaves` sizes, scale * stride * 2^(i / octaves), times the aspect ratios (height / width) at each location."""
    sizes = [[scale * stride * 2 ** (i / octaves) for i in range(octaves)] for stride in strides]
    return DefaultAnchorGenerator(sizes=sizes, aspect_ratios=[list(aspect_ratios)], strides=list(strides), offset=0.5)


@BACKBONE_REGISTRY.register()
def build_p3_p7_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with p6 and p7 from p5, where RetinaNet's take them from res5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelP6P7(channels, channels, in_feature="p5"))


@META_ARCH_REGISTRY.register()
class MuSu(DenseDetector):
    """Losses: L_cls over all anchors and classes on the soft labels w_cls, divided by their sum; reg_loss_weight times
    the sum of w_reg (1 - GIoU) over the samples, divided by the sum of w_reg. Score at inference: sigmoid(z) alone."""

    sync_normalizers = False  # see shared.modeling.normalizers

    @configurable
    def __init__(
        self,
        *,
        anchor_generator: DefaultAnchorGenerator,
        assigner: Assigner,
        cls_loss: TwoSidedFocal | QualityFocal,
        num_classes: int,
        reg_param: str = "delta",
        reg_loss_weight: float = 2.0,
        normalizer: str = "weight_sum_ema",
        balance_gt: bool = False,
        warmup_iters: int = 0,
        stats_period: int = 20,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        **kwargs,
    ):
        """All defaults are ours.

        reg_param: see `_coding`. normalizer: of both losses, at least 1: the sums above as a moving average (from 100,
        momentum 0.9), those of the batch, or its number of objects; each process has its own, see sync_normalizers.
        balance_gt: divide each object's terms by the sum of its weights, so that large objects do not dominate.
        warmup_iters: assign so long by the anchors' IoU and a constant score. stats_period: iterations between the
        scalars of diagnostics.py. test_topk_candidates: per level, before NMS. kwargs: backbone, head,
        head_in_features, pixel_mean, pixel_std.
        """
        super().__init__(**kwargs)
        for name, value, choices in (("reg_param", reg_param, REG_PARAMS), ("normalizer", normalizer, NORMALIZERS)):
            if value not in choices:
                raise ValueError(f"MuSu: {name} is {value!r}, choose one of {', '.join(choices)}.")
        self.anchor_generator, self.assigner, self.cls_loss = anchor_generator, assigner, cls_loss
        self.num_classes, self.reg_loss_weight = num_classes, reg_loss_weight
        self.normalizer, self.balance_gt = normalizer, balance_gt
        self.warmup_iters, self.stats_period = warmup_iters, stats_period
        self.test_score_thresh, self.test_topk_candidates = test_score_thresh, test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image
        self.box2box_transform = self._coding(reg_param)

    def _coding(self, reg_param: str) -> Box2BoxTransform | Box2BoxTransformLinear:
        """ "delta": shift and log scale of the anchor. "ltrb": distances of the sides from the anchor's centre in units
        of its size; they start at 0.5, at the anchor, since from 0 all boxes, and with them all IoUs, start empty."""
        if reg_param == "delta":
            return Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
        nn.init.constant_(self.head.bbox_pred.bias, 0.5)
        return Box2BoxTransformLinear(normalize_by_size=True)

    @classmethod
    def from_config(cls, cfg):
        node, backbone = cfg.MODEL.MUSU, build_backbone(cfg)
        names, num_classes = cfg.MODEL.RETINANET.IN_FEATURES, cfg.MODEL.RETINANET.NUM_CLASSES
        shapes = [backbone.output_shape()[name] for name in names]
        anchor_generator = tiled_anchors(
            strides=[x.stride for x in shapes],
            scale=node.ANCHOR_SCALE,
            octaves=node.OCTAVES,
            aspect_ratios=node.ASPECT_RATIOS,
        )
        head = RetinaNetHead(
            input_shape=shapes,
            num_classes=num_classes,
            num_anchors=anchor_generator.num_cell_anchors[0],
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        same = ("REG_PARAM", "REG_LOSS_WEIGHT", "NORMALIZER", "BALANCE_GT", "WARMUP_ITERS", "STATS_PERIOD")
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": names,
            "anchor_generator": anchor_generator,
            "assigner": assigner_of(node),
            "cls_loss": cls_loss_of(node),
            "num_classes": num_classes,
            **{key.lower(): node[key] for key in same},
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward_training(self, images, features, predictions, gt_instances) -> dict[str, Tensor]:
        logits, boxes, scene = self._see(features, predictions, gt_instances)
        iteration = get_event_storage().iter
        if iteration < self.warmup_iters:
            scene = scene._replace(logits=torch.zeros_like(scene.logits), boxes=scene.anchors.expand_as(scene.boxes))
        assignment = self.assigner(scene)
        if iteration % self.stats_period == 0:
            for name, value in describe(scene, assignment).items():
                get_event_storage().put_scalar(f"assign/{name}", value, smoothing_hint=False)
        return self.losses(logits, boxes, scene, assignment)

    def _see(self, features, predictions, gt_instances) -> tuple[Tensor, Tensor, Scene]:
        """Logits (B, N, K) and decoded boxes (B, N, 4), float32, with their graph; and the assigner's view of them."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        logits, deltas = (cat(x, dim=1).float() for x in (logits, deltas))
        anchors = Boxes.cat(self.anchor_generator(features)).tensor
        if logits.shape[1] != len(anchors):
            cells = len(anchors) // self.anchor_generator.num_cell_anchors[0]
            raise UserError(
                f"MuSu: the head predicts {logits.shape[1] // cells} anchors a location, the anchor generator has "
                f"{len(anchors) // cells}: set model.head.num_anchors to octaves times the number of aspect ratios."
            )
        boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1))
        boxes = boxes.view_as(deltas)
        scene = Scene.of(Grid.of(features, self.anchor_generator), anchors, logits, boxes, gt_instances)
        return logits, boxes, scene

    @torch.no_grad()
    def assign(self, batched_inputs: list[dict]) -> tuple[Scene, Assignment]:
        """The assignment of the model as it is, for inputs with `instances`: nothing is trained or logged."""
        features = self.backbone(self.preprocess_image(batched_inputs).tensor)
        features = [features[name] for name in self.head_in_features]
        targets = [x["instances"].to(self.pixel_mean.device) for x in batched_inputs]
        scene = self._see(features, self.head(features), targets)[2]
        return scene, self.assigner(scene)

    def losses(self, logits: Tensor, boxes: Tensor, scene: Scene, assignment: Assignment) -> dict[str, Tensor]:
        """logits (B, N, K), boxes (B, N, 4): with their graph; gradients flow through nothing else."""
        anchors, gts, w_cls, w_reg = assignment[:4]
        num_gts = len(scene.gt_boxes)
        scales = [object_scales(gts, w, num_gts) if self.balance_gt else torch.ones_like(w) for w in (w_cls, w_reg)]
        target = soft_labels(anchors, scene.gt_classes[gts], w_cls, scales[0], self.num_classes)
        w_reg = w_reg * scales[1]
        loss_cls = classification_loss(self.cls_loss, logits.flatten(0, 1), target)
        loss_reg = self.reg_loss_weight * box_loss(boxes.flatten(0, 1)[anchors], scene.gt_boxes[gts], w_reg)
        return {
            "loss_musu_cls": loss_cls / self._normalize("cls", (target.labels * target.scales).sum(), num_gts),
            "loss_musu_reg": loss_reg / self._normalize("reg", w_reg.sum(), num_gts),
        }

    def _normalize(self, head: str, weight_sum: Tensor, num_gts: int) -> Tensor | float:
        """What the sum of a head's losses is divided by."""
        total, workers = weight_sum, 1
        if self.normalizer == "num_gt":
            total = total.new_tensor(num_gts)
        if self.sync_normalizers:
            total, workers = sum_over_workers(total), comm.get_world_size()
        share = total.clamp(min=1) / workers
        if self.normalizer == "weight_sum_ema":
            return self._ema_update(f"{head}_normalizer", share.item(), INITIAL_NORMALIZER / workers)
        return share

    def forward_inference(self, images, features, predictions):
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors, results = self.anchor_generator(features), []
        for i, size in enumerate(images.image_sizes):
            scores, moves = [x[i].float().sigmoid() for x in logits], [x[i].float() for x in deltas]
            limits = self.test_score_thresh, self.test_topk_candidates
            found = self._decode_multi_level_predictions(anchors, scores, moves, *limits, size)
            keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
            results.append(found[keep[: self.max_detections_per_image]])
        return results
