"""Small dense detectors whose predictions are set by hand, and slow losses to compare with."""

import math

import torch
from torch import nn

from detectron2.modeling import FCOS, Backbone, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances

PIXELS = {"pixel_mean": [100.0, 110.0, 120.0], "pixel_std": [50.0, 50.0, 50.0]}
NUM_CLASSES = 3


class TwoLevels(Backbone):
    """Maps "fine" (stride 8) and "coarse" (stride 16), 4 channels; named coarse first."""

    size_divisibility = 16

    def __init__(self):
        super().__init__()
        self._out_features = ["coarse", "fine"]
        self._out_feature_strides = {"coarse": 16, "fine": 8}
        self._out_feature_channels = {"coarse": 4, "fine": 4}
        self.conv = nn.Conv2d(3, 4, 8, 8)

    def forward(self, x):
        fine = self.conv(x)
        return {"coarse": fine[:, :, ::2, ::2], "fine": fine}


class FixedHead(nn.Module):
    """Returns its own parameters, one tuple entry per kind of prediction."""

    def __init__(self, n, shapes, channels, scale=1.0, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.maps = nn.ModuleList(
            nn.ParameterList(torch.randn(n, c, *s, generator=g) * scale for s in shapes) for c in channels
        )

    def forward(self, features):
        assert [f.shape[-2:] for f in features] == [m.shape[-2:] for m in self.maps[0]]
        return tuple([x.clone() for x in m] for m in self.maps)


def rows(maps, k):
    """The predictions in the anchors' order, by explicit loops: (N, R, k)."""
    images = []
    for i in range(len(maps[0])):
        out = []
        for m in maps:
            a = m.shape[1] // k
            for y in range(m.shape[2]):
                for x in range(m.shape[3]):
                    out += [m[i, j * k : (j + 1) * k, y, x] for j in range(a)]
        images.append(torch.stack(out))
    return torch.stack(images)


def make_retinanet(head, **kwargs):
    arguments = {
        "backbone": TwoLevels(),
        "head": head,
        "head_in_features": ["fine", "coarse"],
        "anchor_generator": DefaultAnchorGenerator(
            sizes=[[8, 12], [16, 24]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
        ),
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "anchor_matcher": Matcher([0.4, 0.5], [0, -1, 1], True),
        "num_classes": NUM_CLASSES,
        **PIXELS,
    }
    return RetinaNet(**{**arguments, **kwargs})


def make_fcos(head, **kwargs):
    return FCOS(**{"backbone": TwoLevels(), "head": head, "num_classes": NUM_CLASSES, **PIXELS, **kwargs})


def targets(boxes, classes, size=(32, 48)):
    gt = Instances(size)
    gt.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return gt


def image(size=(32, 48), **kwargs):
    return {"image": torch.full((3, *size), 128, dtype=torch.uint8), **kwargs}


def slow_focal(logit, target, alpha=0.25, gamma=2.0):
    p = 1 / (1 + math.exp(-logit))
    pt, weight = (p, alpha) if target else (1 - p, 1 - alpha)
    return -weight * (1 - pt) ** gamma * math.log(pt)


def slow_giou_loss(b, g):
    iw = max(0.0, min(b[2], g[2]) - max(b[0], g[0]))
    ih = max(0.0, min(b[3], g[3]) - max(b[1], g[1]))
    union = (b[2] - b[0]) * (b[3] - b[1]) + (g[2] - g[0]) * (g[3] - g[1]) - iw * ih
    hull = (max(b[2], g[2]) - min(b[0], g[0])) * (max(b[3], g[3]) - min(b[1], g[1]))
    return 1 - iw * ih / union + (hull - union) / hull
