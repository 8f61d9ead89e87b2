"""Mask heads (Mask R-CNN, arXiv:1703.06870). R: RoIs of the batch, K: classes (1 if class agnostic), M: mask side
in cells."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

from ..convs import head_conv, normal_fill

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build `cfg.MODEL.ROI_MASK_HEAD.NAME`."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


def _class_channel(logits: Tensor, classes: list[Tensor]) -> Tensor:
    """Each row's channel of its class, of logits (R, K, M, M); the only one if K is 1. (R, M, M)"""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(logits.shape[0], device=logits.device), cat(classes)]


def mask_rcnn_loss(pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """Mean binary cross entropy of the gt class's channel of logits (R, K, M, M) over all R*M*M cells, 0 if R is 0.
    instances: with gt_masks, gt_classes, proposal_boxes, R in all. vis_period: iterations between images; 0: none."""
    if pred_mask_logits.shape[0] == 0:
        return pred_mask_logits.sum() * 0
    logits = _class_channel(pred_mask_logits, [x.gt_classes for x in instances])
    side = logits.shape[-1]
    gt = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances if len(x)]
    gt = cat([g.to(device=logits.device, dtype=torch.bool) for g in gt])
    wrong = (logits > 0) != gt
    counts = torch.stack([wrong.sum(), gt.sum(), (wrong & ~gt).sum(), (wrong & gt).sum()])
    num_wrong, num_positive, false_positive, false_negative = counts.tolist()
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - num_wrong / gt.numel())
    storage.put_scalar("mask_rcnn/false_positive", false_positive / max(gt.numel() - num_positive, 1))
    storage.put_scalar("mask_rcnn/false_negative", false_negative / max(num_positive, 1))
    if vis_period > 0 and storage.iter % vis_period == 0:
        pairs = torch.cat([logits.detach().sigmoid(), gt.to(logits.dtype)], dim=2)
        for k, pair in enumerate(pairs):
            storage.put_image(f"Left: mask prediction;   Right: mask GT ({k})", pair.expand(3, -1, -1))
    return F.binary_cross_entropy_with_logits(logits, gt.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Set `pred_masks` (R_i, 1, M, M), the probabilities of the pred_classes, on Instances of R in all."""
    probs = _class_channel(pred_mask_logits, [x.pred_classes for x in pred_instances]).sigmoid()[:, None]
    for x, masks in zip(pred_instances, probs.split([len(x) for x in pred_instances])):
        x.pred_masks = masks


class BaseMaskRCNNHead(nn.Module):
    """Mask R-CNN's loss and inference on the logits of `layers`, which subclasses define."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        super().__init__()
        self.loss_weight, self.vis_period = loss_weight, vis_period

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x, instances: list[Instances]):
        """x: what `layers` takes. Returns {"loss_mask"} in training, else the instances with `pred_masks`."""
        x = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(x, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(x, instances)
        return instances

    def layers(self, x) -> Tensor:
        """Pooled features -> logits (R, K, M, M)."""
        raise NotImplementedError(f"{type(self).__name__} must define layers(x).")


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convs for all `conv_dims` but the last, a 2x2 deconvolution to the last (doubles the side), 1x1 predictor.
    num_classes 1: class agnostic."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm="", **kwargs):
        super().__init__(**kwargs)
        assert len(conv_dims) >= 1, "conv_dims needs at least one entry: the deconvolution's."
        channels = input_shape.channels
        for k, dim in enumerate(conv_dims[:-1], 1):
            self.add_module(f"mask_fcn{k}", head_conv(channels, dim, conv_norm))
            channels = dim
        self.deconv = ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        for layer in list(self)[:-2]:
            weight_init.c2_msra_fill(layer)
        normal_fill(self.predictor, std=0.001)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head, ret = cfg.MODEL.ROI_MASK_HEAD, super().from_config(cfg, input_shape)
        num_classes = 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        conv_dims = [head.CONV_DIM] * (head.NUM_CONV + 1)
        sizes = {"input_shape": input_shape, "num_classes": num_classes, "conv_dims": conv_dims}
        return {**ret, **sizes, "conv_norm": head.NORM}

    def layers(self, x: Tensor) -> Tensor:
        """x: (R, C, H, W), R may be 0. Returns (R, num_classes, 2H, 2W)."""
        for layer in self:
            x = layer(x)
        return x
