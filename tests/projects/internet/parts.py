"""Tiny InterNet parts: 8 channels, strides 4 to 32, 3 classes, images of 64 x 96 px, level base 40 px.

Levels begin at sides of 14.1, 28.3 and 56.6 px: SIDES has a box of each.
"""

import torch

import projects.InterNet  # noqa: F401  registers its parts
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from projects.InterNet import (
    ClassBuffer,
    Critic,
    FeatureIntertwiner,
    InterNetCascadeROIHeads,
    InterNetConvFCHead,
    InterNetROIHeads,
    InterNetROIPooler,
    LevelAssigner,
    MakeUp,
    ScaleOT,
)

CHANNELS, CLASSES, DIM = 8, 3, 16
SIZE = (64, 96)
STRIDES = (4, 8, 16, 32)
NAMES = ("p2", "p3", "p4", "p5")
SIDES = (10, 20, 40, 60)  # one box on each level


def make_maps(num_images=2, seed=0, requires_grad=False):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(num_images, CHANNELS, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    return [torch.randn(shape, generator=rng).requires_grad_(requires_grad) for shape in shapes]


def make_features(num_images=2, **kwargs):
    return dict(zip(NAMES, make_maps(num_images, **kwargs)))


def square(side, x=1.0, y=2.0):
    return [x, y, x + side, y + side]


def make_pooler(output_size=14, sampling_ratio=1, **assign):
    assigner = LevelAssigner(**{"base": 40, **assign})
    return InterNetROIPooler(output_size, [1 / s for s in STRIDES], sampling_ratio, assigner=assigner)


def make_critic(**changes):
    return Critic(**{"channels": CHANNELS, "hidden": 8, "dim": DIM, "norm": "", **changes})


def make_intertwiner(buffer=None, transport=None, **changes):
    buffer = ClassBuffer(**{"num_classes": CLASSES, "dim": DIM, **(buffer or {})})
    if transport is not None:
        transport = ScaleOT(**{"channels": CHANNELS, "norm": "", "iters": 3, **transport})
    return FeatureIntertwiner(buffer=buffer, transport=transport, **changes)


def make_box_head(fusion="linear", dim=DIM, **changes):
    shape = ShapeSpec(channels=CHANNELS, height=14, width=14)
    return InterNetConvFCHead(shape, fc_dims=[dim, 12], fusion=fusion, **changes)


def make_predictor(**changes):
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    shape = ShapeSpec(channels=12)
    return FastRCNNOutputLayers(shape, box2box_transform=transform, num_classes=CLASSES, **changes)


def mask_parts():
    shape = ShapeSpec(channels=CHANNELS, height=14, width=14)
    pooler = ROIPooler(14, [1 / s for s in STRIDES], sampling_ratio=1, pooler_type="ROIAlignV2")
    head = MaskRCNNConvUpsampleHead(shape, num_classes=CLASSES, conv_dims=[CHANNELS, CHANNELS])
    return dict(mask_in_features=NAMES, mask_pooler=pooler, mask_head=head)


def make_heads(fusion="linear", norm="", mask=False, **changes):
    """Keyword `intertwiner`: a module, None, or a dict of make_intertwiner's arguments."""
    intertwiner = changes.pop("intertwiner", {})
    if isinstance(intertwiner, dict):
        intertwiner = make_intertwiner(**intertwiner)
    arguments = dict(
        makeup=MakeUp(channels=CHANNELS, norm=norm),
        critic=make_critic(norm=norm),
        intertwiner=intertwiner,
        num_classes=CLASSES,
        batch_size_per_image=16,
        positive_fraction=0.5,
        proposal_matcher=Matcher([0.5], [0, 1]),
        box_in_features=NAMES,
        box_pooler=make_pooler(),
        box_head=make_box_head(fusion),
        box_predictor=make_predictor(),
        **(mask_parts() if mask else {}),
    )
    return InterNetROIHeads(**{**arguments, **changes})


def make_cascade(mask=False, **changes):
    ious = (0.5, 0.6, 0.7)
    arguments = dict(
        makeup=MakeUp(channels=CHANNELS, norm=""),
        critic=make_critic(),
        intertwiner=make_intertwiner(),
        num_classes=CLASSES,
        batch_size_per_image=16,
        positive_fraction=0.5,
        box_in_features=NAMES,
        box_pooler=make_pooler(),
        box_heads=[make_box_head("separate" if stage else "linear") for stage in range(3)],
        box_predictors=[make_predictor(cls_agnostic_bbox_reg=True) for _ in ious],
        proposal_matchers=[Matcher([iou], [0, 1]) for iou in ious],
        **(mask_parts() if mask else {}),
    )
    return InterNetCascadeROIHeads(**{**arguments, **changes})


def make_proposals(sides=SIDES):
    """A box of each side, and one more near the right edge that matches no target."""
    boxes = [square(side) for side in sides] + [[80.0, 50.0, 95.0, 60.0]]
    boxes = torch.tensor(boxes)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.linspace(1, 0, len(boxes)))


def make_targets(sides=SIDES, classes=(0, 1, 2, 0)):
    """Squares of these sides with masks that fill them; no sides: an image without objects."""
    target = Instances(SIZE)
    target.gt_boxes = Boxes(torch.tensor([square(side) for side in sides]).reshape(-1, 4))
    target.gt_classes = torch.tensor(classes[: len(sides)], dtype=torch.int64)
    masks = torch.zeros(len(sides), *SIZE, dtype=torch.bool)
    for mask, side in zip(masks, sides):
        mask[2 : 2 + side, 1 : 1 + side] = True
    target.gt_masks = BitMasks(masks)
    return target
