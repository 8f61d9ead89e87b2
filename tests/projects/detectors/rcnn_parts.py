"""Tiny RoI heads for the tests of Grid and Dynamic R-CNN: 8 channels, strides 4 to 32, 3 classes, 64 x 96 images."""

import torch

import projects.Detectors  # noqa: F401  registers its parts
from detectron2.config import CfgNode, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from shared.config import load_config
from tests.paths import ROOT

CHANNELS, CLASSES = 8, 3
SIZE = (64, 96)
STRIDES = (4, 8, 16, 32)
NAMES = ("p2", "p3", "p4", "p5")
BOXES = ((4.0, 6.0, 40.0, 50.0), (50.0, 10.0, 90.0, 60.0))


def make_features(num_images=2, requires_grad=False):
    rng = torch.Generator().manual_seed(0)
    shapes = [(num_images, CHANNELS, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    return {n: torch.randn(s, generator=rng).requires_grad_(requires_grad) for n, s in zip(NAMES, shapes)}


def make_pooler(side=7):
    return ROIPooler(side, [1 / s for s in STRIDES], sampling_ratio=1, pooler_type="ROIAlignV2")


def make_box_head(conv_dims=(), fc_dims=(16,)):
    return FastRCNNConvFCHead(
        ShapeSpec(channels=CHANNELS, height=7, width=7), conv_dims=list(conv_dims), fc_dims=list(fc_dims)
    )


def make_predictor(**changes):
    arguments = dict(box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)), num_classes=CLASSES)
    return FastRCNNOutputLayers(ShapeSpec(channels=16), **{**arguments, **changes})


def box_parts(mask=False, **changes):
    """Arguments of StandardROIHeads."""
    parts = dict(
        num_classes=CLASSES,
        batch_size_per_image=32,
        positive_fraction=0.5,
        proposal_matcher=Matcher([0.5], [0, 1]),
        box_in_features=NAMES,
        box_pooler=make_pooler(),
        box_head=make_box_head(),
        box_predictor=make_predictor(),
    )
    if mask:
        shape = ShapeSpec(channels=CHANNELS, height=14, width=14)
        head = MaskRCNNConvUpsampleHead(shape, num_classes=CLASSES, conv_dims=[CHANNELS, CHANNELS])
        parts.update(mask_in_features=NAMES, mask_pooler=make_pooler(14), mask_head=head)
    return {**parts, **changes}


def make_proposals(boxes):
    """Proposals of one image."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.linspace(1, 0, len(boxes)))


def near_proposals(boxes=BOXES, shifts=(-3.0, 0.0, 2.0, 4.0)):
    """Each box moved by each shift, and one at the lower edge."""
    moved = [[v + s for v in box] for box in boxes for s in shifts]
    return make_proposals([*moved, [60.0, 50.0, 75.0, 63.0]])


def make_targets(boxes=BOXES):
    """One image's ground truth of classes 0, 1, ... with masks that fill the image; no boxes: an empty image."""
    target = Instances(SIZE)
    target.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    target.gt_classes = torch.arange(len(boxes)) % CLASSES
    target.gt_masks = BitMasks(torch.ones(len(boxes), *SIZE, dtype=torch.bool))
    return target


def train_step(heads, proposals, targets, features=None):
    """Losses of one iteration of RoI heads in training."""
    features = make_features(len(proposals)) if features is None else features
    with EventStorage():
        return heads(None, features, proposals, targets)[1]


def both_forms(name, *overrides):
    """(config, model) of `{name}.py` and of `{name}.yaml`; models on the meta device: shapes and settings alone."""
    file = f"{ROOT}/projects/Detectors/configs/{name}"
    pair = load_config(f"{file}.py"), load_config(f"{file}.yaml", ["MODEL.DEVICE=meta", *overrides])
    with torch.device("meta"):
        return [(cfg, build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)) for cfg in pair]


def shapes(model):
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def size(module):
    return sum(p.numel() for p in module.parameters())


def same_training(lazy, cfg):
    """Asserts that a LazyConfig and a CfgNode train alike."""
    train, solver, drops = lazy.train, cfg.SOLVER, lazy.lr_multiplier.drops
    assert train.max_iter == solver.MAX_ITER == 87_960  # 12 epochs of 7330
    assert tuple(round(d * train.max_iter) for d in drops) == tuple(solver.STEPS) == (58_640, 80_630)
    assert lazy.lr_multiplier.warmup_iters == solver.WARMUP_ITERS == 500
    assert lazy.lr_multiplier.warmup_factor == solver.WARMUP_FACTOR == 0.001
    assert lazy.optimizer.lr == solver.BASE_LR == 0.02
    assert lazy.optimizer.weight_decay == solver.WEIGHT_DECAY == 1e-4
    assert lazy.optimizer.params.weight_decay_norm == solver.WEIGHT_DECAY_NORM == 1e-4
    assert train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert list(lazy.model.pixel_mean) == cfg.MODEL.PIXEL_MEAN and list(lazy.model.pixel_std) == cfg.MODEL.PIXEL_STD
    assert lazy.model.input_format == lazy.dataloader.train.mapper.image_format == cfg.INPUT.FORMAT == "RGB"
    resize = lazy.dataloader.train.mapper.augmentations[0]
    assert (resize.short_edge_length,) == tuple(cfg.INPUT.MIN_SIZE_TRAIN) and resize.max_size == 1333
