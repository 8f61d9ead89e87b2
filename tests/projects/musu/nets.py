"""A MuSu small enough for a test: two levels of 32 channels on images of 64 px."""

import torch
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from projects.MuSu import MuSu, MuSuAssigner, TwoSidedFocal, tiled_anchors

CLASSES = 3


class TwoLevels(Backbone):
    """Maps of strides 8 and 16 by convolutions of patches."""

    def __init__(self):
        super().__init__()
        self.p3 = nn.Sequential(nn.Conv2d(3, 32, 8, stride=8), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.p4 = nn.Conv2d(32, 32, 2, stride=2)

    def forward(self, x):
        p3 = self.p3(x)
        return {"p3": p3, "p4": self.p4(p3.relu())}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=32, stride=8), "p4": ShapeSpec(channels=32, stride=16)}

    @property
    def size_divisibility(self):
        return 16


def tiny_musu(*, num_anchors: int | None = None, ratios=(1.0,), norm: str = "", **kwargs) -> MuSu:
    torch.manual_seed(0)
    backbone = TwoLevels()
    head = RetinaNetHead(
        input_shape=list(backbone.output_shape().values()),
        num_classes=CLASSES,
        num_anchors=num_anchors or len(ratios),
        conv_dims=[32],
        norm=norm,
    )
    given = {
        "backbone": backbone,
        "head": head,
        "anchor_generator": tiled_anchors(strides=[8, 16], scale=3.0, aspect_ratios=ratios),
        "assigner": MuSuAssigner(),
        "cls_loss": TwoSidedFocal(),
        "num_classes": CLASSES,
        "normalizer": "weight_sum",  # without memory
        "pixel_mean": [120.0] * 3,
        "pixel_std": [60.0] * 3,
    }
    return MuSu(**{**given, **kwargs})


def make_inputs(counts=(2, 1), seed: int = 0) -> list[dict]:
    """Grey images of 64 px with bright rectangles; the class is the colour."""
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [34.0, 20.0, 60.0, 58.0], [10.0, 44.0, 28.0, 60.0]])
    rng, batch = torch.Generator().manual_seed(seed), []
    for i, count in enumerate(counts):
        image = torch.randint(90, 130, (3, 64, 64), generator=rng, dtype=torch.uint8)
        classes = (torch.arange(count) + i) % CLASSES
        for (x0, y0, x1, y1), label in zip(boxes[:count].int().tolist(), classes.tolist()):
            image[label, y0:y1, x0:x1] = 250
        target = Instances((64, 64), gt_boxes=Boxes(boxes[:count]), gt_classes=classes)
        batch.append({"image": image, "instances": target, "height": 64, "width": 64})
    return batch
