"""Backbones without a top-down path, for the PASCAL VOC rows of "Feature Intertwiner for Object Detection" (ICLR 2019,
arXiv:1903.11851), Table 5: four levels of a ResNet, or of VGG-16 as SSD (arXiv:1512.02325) extends it.

Maps are named p2..p5 by their place, finest first, whatever their strides (VGG-16: 16 to 128): the level rule of
Eq. (6) counts levels, as SSD does. The paper keeps each level's own channels; here a 1x1 convolution brings all to the
same number, which RPN, make-up and critic units share. Units for 2048 channels would have 38 M parameters each.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone

FIRST_LEVEL = 2  # number of the finest map's name


class ReducedLevels(Backbone):
    """The maps of `bottom_up`, each through its own 1x1 convolution to `out_channels`; p2 is the first of in_features.

    norm: of the 1x1 convolutions, as `get_norm` takes it; "" gives them a bias.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        out_channels: int = 256,
        norm: str = "",
    ):
        super().__init__()
        shapes = bottom_up.output_shape()
        if missing := [name for name in in_features if name not in shapes]:
            raise ValueError(f"ReducedLevels: in_features {missing} are not among bottom_up's {', '.join(shapes)}.")
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self._out_features = [f"p{FIRST_LEVEL + i}" for i in range(len(self.in_features))]
        self._out_feature_strides, self._out_feature_channels = {}, {}
        for name, feature in zip(self._out_features, self.in_features):
            conv = Conv2d(shapes[feature].channels, out_channels, 1, bias=norm == "", norm=get_norm(norm, out_channels))
            weight_init.c2_xavier_fill(conv)
            self.add_module(f"reduce_{name}", conv)
            self._out_feature_strides[name] = shapes[feature].stride
            self._out_feature_channels[name] = out_channels

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride: sides then halve exactly from level to level."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> {"p2": (N, out_channels, H / stride, W / stride), ...}."""
        maps = self.bottom_up(x)
        return {
            name: getattr(self, f"reduce_{name}")(maps[feature])
            for name, feature in zip(self._out_features, self.in_features)
        }


VGG_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # 3x3 convolutions of a block and their channels
SSD_BLOCKS = {"conv8": (256, 512), "conv9": (128, 256), "conv10": (128, 256)}  # channels of its 1x1 and 3x3 convolution


class VGG16SSD(Backbone):
    """VGG-16 with SSD's layers for 512-pixel images: conv7 (stride 16), conv8_2, conv9_2 and conv10_2 (128).

    pool5 is 3x3 of stride 1, conv6 (from fc6) has dilation 6, conv7 (from fc7) is 1x1. `features` has the layout of
    torchvision's vgg16, so that its weights fit; `convert_torchvision_vgg16` makes conv6 and conv7 of its fc6 and fc7.
    Those weights want RGB images, pixel_mean (123.675, 116.28, 103.53) and pixel_std (58.395, 57.12, 57.375).

    freeze_at: number of VGG's blocks, first ones first, that are not trained (Fast R-CNN: 2).
    """

    def __init__(self, out_features: Sequence[str] = ("conv7", "conv8_2", "conv9_2", "conv10_2"), freeze_at: int = 2):
        super().__init__()
        layers, channels, ends = [], 3, []
        for block, (num, width) in enumerate(VGG_BLOCKS):
            for _ in range(num):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            last = block == len(VGG_BLOCKS) - 1
            layers.append(nn.MaxPool2d(3, stride=1, padding=1) if last else nn.MaxPool2d(2))
            ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.conv6 = nn.Conv2d(channels, 1024, 3, padding=6, dilation=6)
        self.conv7 = nn.Conv2d(1024, 1024, 1)
        channels, stride = 1024, 16
        shapes = {"conv7": (channels, stride)}
        for name, (narrow, wide) in SSD_BLOCKS.items():
            self.add_module(f"{name}_1", nn.Conv2d(channels, narrow, 1))
            self.add_module(f"{name}_2", nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
            channels, stride = wide, 2 * stride
            shapes[f"{name}_2"] = (channels, stride)
        if unknown := [name for name in out_features if name not in shapes]:
            raise ValueError(f"VGG16SSD: out_features {unknown} are not among {', '.join(shapes)}.")
        if not 0 <= freeze_at <= len(ends):
            raise ValueError(f"VGG16SSD: freeze_at is {freeze_at}, but VGG-16 has {len(ends)} blocks.")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                weight_init.c2_msra_fill(layer)
        self._out_features = [name for name in shapes if name in out_features]
        self._out_feature_channels = {name: shape[0] for name, shape in shapes.items()}
        self._out_feature_strides = {name: shape[1] for name, shape in shapes.items()}
        if freeze_at:
            self.features[: ends[freeze_at - 1]].requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides[name] for name in self._out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> {"conv7": (N, 1024, H / 16, W / 16), ...}, after ReLU."""
        x = F.relu(self.conv6(self.features(x)))
        maps = {"conv7": F.relu(self.conv7(x))}
        x = maps["conv7"]
        for name in SSD_BLOCKS:
            x = F.relu(getattr(self, f"{name}_1")(x))
            x = maps[f"{name}_2"] = F.relu(getattr(self, f"{name}_2")(x))
        return {name: maps[name] for name in self._out_features}


def convert_torchvision_vgg16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's vgg16 -> one for VGG16SSD; SSD's own layers stay as initialised.

        torch.save({"model": convert_torchvision_vgg16(torch.load("vgg16.pth", weights_only=True))}, "vgg16_ssd.pth")
        train_net.py ... train.init_checkpoint="vgg16_ssd.pth?matching_heuristics=True"

    conv6 takes every 4th output of fc6 and every 3rd of its 7 x 7 cells, conv7 every 4th row and column of fc7 (SSD,
    Sec. 3). Without the classifier's keys the convolutions alone are returned.
    """
    converted = {key: value for key, value in weights.items() if key.startswith("features.")}
    if not converted:
        raise ValueError("convert_torchvision_vgg16: no key begins with 'features.': give the state dict of a vgg16.")
    for old, new, width in (("classifier.0", "conv6", 7), ("classifier.3", "conv7", 1)):
        if f"{old}.weight" in weights:
            weight = weights[f"{old}.weight"]
            weight = weight.reshape(len(weight), -1, width, width)
            step = 1 if new == "conv6" else 4
            converted[f"{new}.weight"] = torch.clone(weight[::4, ::step, ::3, ::3])
            converted[f"{new}.bias"] = torch.clone(weights[f"{old}.bias"][::4])
    return converted


@BACKBONE_REGISTRY.register()
def build_resnet_levels_backbone(cfg, input_shape: ShapeSpec) -> ReducedLevels:
    """A ResNet of MODEL.RESNETS, its maps MODEL.FPN.IN_FEATURES reduced to MODEL.FPN.OUT_CHANNELS."""
    fpn = cfg.MODEL.FPN
    return ReducedLevels(build_resnet_backbone(cfg, input_shape), fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM)


@BACKBONE_REGISTRY.register()
def build_vgg16_ssd_levels_backbone(cfg, input_shape: ShapeSpec) -> ReducedLevels:
    """VGG16SSD with MODEL.BACKBONE.FREEZE_AT, its four maps reduced to MODEL.FPN.OUT_CHANNELS."""
    bottom_up = VGG16SSD(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    names = tuple(bottom_up.output_shape())
    return ReducedLevels(bottom_up, names, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM)
