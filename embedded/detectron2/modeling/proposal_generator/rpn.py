"""Region Proposal Network (Faster R-CNN, arXiv:1506.01497). N: images, A: anchors per cell, R: anchors per image
(sum of H*W*A over the levels), B: box dimension (4)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..convs import head_conv, normal_fill
from ..matcher import Matcher, matched_boxes
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build `cfg.MODEL.RPN.HEAD_NAME`."""
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convs with ReLU shared by all levels, then 1x1 convs for logits and deltas.
    conv_dims: output channels of the 3x3 convs; -1 keeps the width. One entry gives the state keys `conv.*`, several
    give `conv.conv0.*`, `conv.conv1.*`, ..."""

    @configurable
    def __init__(self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)):
        super().__init__()
        convs = OrderedDict()
        for dim in conv_dims:
            out_channels = in_channels if dim == -1 else dim
            if out_channels <= 0:
                raise ValueError(f"conv_dims has {dim}: give positive widths, or -1 to keep it.")
            convs[f"conv{len(convs)}"] = head_conv(in_channels, out_channels)
            in_channels = out_channels
        self.conv = convs["conv0"] if len(convs) == 1 else nn.Sequential(convs)
        self.objectness_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(in_channels, num_anchors * box_dim, kernel_size=1)
        normal_fill(self, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        generator = build_anchor_generator(cfg, input_shape)
        channels, num_anchors = {s.channels for s in input_shape}, set(generator.num_anchors)
        assert len(channels) == 1, f"All levels must have the same channels, got {channels}."
        assert len(num_anchors) == 1, f"All levels need as many anchors per cell: {num_anchors}."
        sizes = {"in_channels": channels.pop(), "num_anchors": num_anchors.pop(), "box_dim": generator.box_dim}
        return {**sizes, "conv_dims": cfg.MODEL.RPN.CONV_DIMS}

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """features: per level (N, C, H, W). Returns logits (N, A, H, W), deltas (N, A*B, H, W)."""
        shared = [self.conv(x) for x in features]
        return [self.objectness_logits(x) for x in shared], [self.anchor_deltas(x) for x in shared]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Anchors, a head that scores and moves them, their loss, and NMS.
    pre_nms_topk, post_nms_topk: (in training, at test); before NMS it counts per level.
    anchor_boundary_thresh: anchors further outside the image than this many pixels are not trained on; negative: all.
    loss_weight: one for both losses, or by loss name (missing: 1)."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | Mapping[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ):
        super().__init__()
        self.in_features, self.rpn_head, self.anchor_generator = in_features, head, anchor_generator
        self.anchor_matcher, self.box2box_transform = anchor_matcher, box2box_transform
        self.batch_size_per_image, self.positive_fraction = batch_size_per_image, positive_fraction
        self.pre_nms_topk, self.post_nms_topk = ({True: k[0], False: k[1]} for k in (pre_nms_topk, post_nms_topk))
        self.nms_thresh, self.min_box_size = nms_thresh, float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        names = ("loss_rpn_cls", "loss_rpn_loc")
        self.loss_weight = loss_weight if isinstance(loss_weight, Mapping) else dict.fromkeys(names, loss_weight)
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        rpn, cls_weight = cfg.MODEL.RPN, cfg.MODEL.RPN.LOSS_WEIGHT
        shapes = [input_shape[f] for f in rpn.IN_FEATURES]
        keys = ("IN_FEATURES", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION", "NMS_THRESH", "SMOOTH_L1_BETA")
        return {
            **{key.lower(): rpn[key] for key in keys},
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "head": build_rpn_head(cfg, shapes),
            "anchor_matcher": Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {"loss_rpn_cls": cls_weight, "loss_rpn_loc": rpn.BBOX_REG_LOSS_WEIGHT * cls_weight},
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Returns proposals per image (see find_top_rpn_proposals) and, in training, losses."""
        features = [features[f] for f in self.in_features]
        anchors, box_dim = self.anchor_generator(features), self.anchor_generator.box_dim
        logits, deltas = self.rpn_head(features)
        # (N, A, H, W) -> (N, H*W*A); (N, A*B, H, W) -> (N, H*W*A, B): the order of the anchors
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas]
        losses = {}
        if self.training:
            assert gt_instances is not None, "RPN needs gt_instances in training."
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """Keep a random sample of label (R,), the rest becomes -1, in place."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns per image the label (R,) int8 (1 object, 0 background, -1 not trained on) and the matched ground
        truth box (R, 4) of each anchor, zeros in images without any."""
        anchors, labels, boxes = Boxes.cat(anchors), [], []
        for gt in gt_instances:
            iou = retry_if_cuda_oom(pairwise_iou)(gt.gt_boxes, anchors)
            matches, label = (x.to(anchors.device) for x in retry_if_cuda_oom(self.anchor_matcher)(iou))
            if self.anchor_boundary_thresh >= 0:
                label[~anchors.inside_box(gt.image_size, self.anchor_boundary_thresh)] = -1
            labels.append(self._subsample_labels(label))
            boxes.append(matched_boxes(gt.gt_boxes, matches))
        return labels, boxes

    def losses(
        self, anchors: list[Boxes], pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
    ) -> dict[str, Tensor]:
        """Lists of logits (N, R_l) and deltas (N, R_l, B) per level, labels (R,) and boxes (R, B) per image. Both
        losses are sums divided by `batch_size_per_image * N`."""
        labels, num_images = torch.stack(gt_labels), len(gt_labels)  # (N, R)
        positive, sampled = labels == 1, labels >= 0
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", int(positive.sum()) / num_images)
        storage.put_scalar("rpn/num_neg_anchors", int((labels == 0).sum()) / num_images)
        pairs = anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes
        localization = _dense_box_regression_loss(*pairs, positive, self.box_reg_loss_type, self.smooth_l1_beta)
        logits = cat(pred_objectness_logits, dim=1)[sampled]
        objectness = F.binary_cross_entropy_with_logits(logits, labels[sampled].to(logits.dtype), reduction="sum")
        normalizer = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": objectness / normalizer, "loss_rpn_loc": localization / normalizer}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self, anchors: list[Boxes], pred_objectness_logits, pred_anchor_deltas, image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Decode the predictions (see `losses`) and keep the best boxes, without gradient."""
        predictions = self._decode_proposals(anchors, pred_anchor_deltas), pred_objectness_logits
        topk = self.pre_nms_topk[self.training], self.post_nms_topk[self.training]
        limits = self.nms_thresh, *topk, self.min_box_size, self.training
        return find_top_rpn_proposals(*predictions, image_sizes, *limits)

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """Deltas per level (N, R_l, B) -> boxes per level (N, R_l, B)."""
        decode, proposals = self.box2box_transform.apply_deltas, []
        for a, deltas in zip(anchors, pred_anchor_deltas):
            expanded = a.tensor.expand_as(deltas).flatten(0, 1)
            proposals.append(decode(deltas.flatten(0, 1), expanded).view_as(deltas))
        return proposals
