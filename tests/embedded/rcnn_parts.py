"""Tiny two-stage detectors for the tests: 8 channels, strides 4 and 8, 3 classes."""

import torch

from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import BitMasks, Boxes, Instances

CHANNELS, CLASSES = 8, 3
LEVELS = ["p2", "p3"]


class TinyBackbone(Backbone):
    def __init__(self):
        super().__init__()
        self.stem = Conv2d(3, CHANNELS, 3, stride=4, padding=1)
        self.down = Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self._out_features = LEVELS
        self._out_feature_channels = dict.fromkeys(LEVELS, CHANNELS)
        self._out_feature_strides = {"p2": 4, "p3": 8}

    @property
    def size_divisibility(self):
        return 8

    def forward(self, x):
        p2 = self.stem(x)
        return {"p2": p2, "p3": self.down(p2.relu())}


def make_rpn(**changes):
    arguments = dict(
        in_features=LEVELS,
        head=StandardRPNHead(in_channels=CHANNELS, num_anchors=3),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16], [32]], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4, 8], offset=0.0
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=32,
        positive_fraction=0.5,
        pre_nms_topk=(60, 40),
        post_nms_topk=(30, 20),
    )
    return RPN(**{**arguments, **changes})


def make_pooler(size):
    return ROIPooler(size, scales=(1 / 4, 1 / 8), sampling_ratio=0, pooler_type="ROIAlignV2")


def make_predictor(weights=(10.0, 10.0, 5.0, 5.0), **changes):
    return FastRCNNOutputLayers(
        ShapeSpec(channels=16),
        **{"box2box_transform": Box2BoxTransform(weights=weights), "num_classes": CLASSES, **changes},
    )


def make_box_head():
    shape = ShapeSpec(channels=CHANNELS, height=3, width=3)
    return FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[16])


def mask_parts():
    shape = ShapeSpec(channels=CHANNELS, height=4, width=4)
    return dict(
        mask_in_features=LEVELS,
        mask_pooler=make_pooler(4),
        mask_head=MaskRCNNConvUpsampleHead(shape, num_classes=CLASSES, conv_dims=[CHANNELS] * 2),
    )


def make_heads(mask=False, **changes):
    arguments = dict(
        num_classes=CLASSES,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1]),
        box_in_features=LEVELS,
        box_pooler=make_pooler(3),
        box_head=make_box_head(),
        box_predictor=make_predictor(),
        **(mask_parts() if mask else {}),
    )
    return StandardROIHeads(**{**arguments, **changes})


def make_cascade(mask=False, **changes):
    weights = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
    arguments = dict(
        num_classes=CLASSES,
        batch_size_per_image=16,
        positive_fraction=0.25,
        box_in_features=LEVELS,
        box_pooler=make_pooler(3),
        box_heads=[make_box_head() for _ in weights],
        box_predictors=[make_predictor(w, cls_agnostic_bbox_reg=True) for w in weights],
        proposal_matchers=[Matcher([iou], [0, 1]) for iou in (0.5, 0.6, 0.7)],
        **(mask_parts() if mask else {}),
    )
    return CascadeROIHeads(**{**arguments, **changes})


def make_rcnn(**changes):
    arguments = dict(
        backbone=TinyBackbone(),
        proposal_generator=make_rpn(),
        roi_heads=make_heads(mask=True),
        pixel_mean=[100.0, 110.0, 120.0],
        pixel_std=[50.0, 60.0, 70.0],
        input_format="BGR",
    )
    return GeneralizedRCNN(**{**arguments, **changes})


def make_features(num_images, height=32, width=48, requires_grad=False):
    """The maps of images of height x width pixels."""
    return {
        name: torch.randn(num_images, CHANNELS, height // s, width // s).requires_grad_(requires_grad)
        for name, s in (("p2", 4), ("p3", 8))
    }


def make_proposals(boxes, size=(32, 48)):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    logits = torch.linspace(1, 0, len(boxes))
    return Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=logits)


def make_targets(boxes, classes, size=(32, 48)):
    """Ground truth with masks that fill the boxes."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
        mask[y0:y1, x0:x1] = True
    target = Instances(size)
    target.gt_boxes = Boxes(boxes)
    target.gt_classes = torch.as_tensor(classes, dtype=torch.int64)
    target.gt_masks = BitMasks(masks)
    return target


def make_inputs(with_gt=(True, True), sizes=((32, 48), (40, 30))):
    """Two images; where with_gt is False the instances are empty."""
    inputs = []
    for has, (h, w) in zip(with_gt, sizes):
        boxes = [[2, 3, 20, 21], [10, 8, 28, 30]] if has else []
        inputs.append(
            {
                "image": torch.randint(0, 256, (3, h, w), dtype=torch.uint8),
                "instances": make_targets(boxes, [0, 2] if has else [], (h, w)),
            }
        )
    return inputs
