"""MobileNetV2 (arXiv:1801.04381) as a detection backbone: torchvision's network with maps at strides 4 to 32."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torchvision.models import mobilenet_v2

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from .fpn import build_fpn

# name of a map: (index in torchvision's `features` of the block that gives it, channels, stride)
TAPS = {"res2": (3, 24, 4), "res3": (6, 32, 8), "res4": (13, 96, 16), "res5": (17, 320, 32)}


class MobileNetV2(Backbone):
    """Blocks 0 to 17 of torchvision's `mobilenet_v2().features`, under its names; the last 1x1 convolution, to 1280
    channels, belongs to the classifier and is left out.

    Maps are named after their strides as ResNet's are, so that it takes a ResNet's place below a feature pyramid.
    """

    def __init__(
        self,
        *,
        norm: str = "FrozenBN",
        out_features: Sequence[str] = tuple(TAPS),
        freeze_at: int = 0,
        in_channels: int = 3,
    ):
        """norm: for `get_norm`. out_features: of TAPS; blocks beyond the last one are not built.
        freeze_at: 1 = the first convolution, 2 = everything up to res2, ..., 5 = all; frozen batch norms there.

        Raises:
            ValueError: no norm, an unknown map, a part to freeze that there is not, images of other than 3 channels.
        """
        super().__init__()
        if not norm:
            raise ValueError("MobileNetV2's convolutions have no biases and need a norm: FrozenBN, BN, SyncBN or GN.")
        if not out_features or not set(out_features) <= set(TAPS):
            raise ValueError(f"MobileNetV2: out_features must be among {', '.join(TAPS)}, got {list(out_features)}.")
        if not 0 <= freeze_at <= len(TAPS) + 1:
            raise ValueError(f"MobileNetV2: freeze_at must be in [0, {len(TAPS) + 1}], got {freeze_at}.")
        if in_channels != 3:
            raise ValueError(f"MobileNetV2 takes images of 3 channels, got {in_channels}.")
        self._out_features = [name for name in TAPS if name in out_features]
        self._out_feature_channels = {name: TAPS[name][1] for name in self._out_features}
        self._out_feature_strides = {name: TAPS[name][2] for name in self._out_features}
        last = TAPS[self._out_features[-1]][0]
        self.features = mobilenet_v2(weights=None, norm_layer=partial(get_norm, norm)).features[: last + 1]
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        ends = [0, *(index for index, _, _ in TAPS.values())]
        frozen = self.features[: ends[freeze_at - 1] + 1] if freeze_at > 0 else []
        for block in frozen:
            block.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(block)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps (N, C, H / stride, W / stride), rounded up, by name."""
        names = {TAPS[name][0]: name for name in self._out_features}
        outputs = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in names:
                outputs[names[index]] = x
        return outputs


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MobileNetV2:
    """MobileNetV2 with MODEL.RESNETS' NORM and OUT_FEATURES, frozen up to MODEL.BACKBONE.FREEZE_AT."""
    return MobileNetV2(
        norm=cfg.MODEL.RESNETS.NORM,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2, FPN and p6: for Faster and Mask R-CNN."""
    return build_fpn(cfg, build_mobilenetv2_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2, FPN, p6 and p7 (from res5): for RetinaNet."""
    bottom_up = build_mobilenetv2_backbone(cfg, input_shape)
    return build_fpn(cfg, bottom_up, LastLevelP6P7(TAPS["res5"][1], cfg.MODEL.FPN.OUT_CHANNELS))
