"""The registered backbones: DEPLA in ResNets, in FishNets, in their feature pyramids, and in both."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from shared.modeling.fishnet import FishNet
from shared.modeling.fpn import build_fpn

from .config import spec_of
from .fpn import DEPLAFPN
from .resnet import depla_resnet


@BACKBONE_REGISTRY.register()
def build_depla_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """DEPLA-ResNet or, with MODEL.DEPLA.SE_RATIO, DEPLA-SE-ResNet; widths and norm from MODEL.RESNETS.

    ValueError: a value of MODEL.RESNETS that DEPLA-ResNet does not have.
    """
    node, resnets = cfg.MODEL.DEPLA, cfg.MODEL.RESNETS
    for key, value in (("RES5_DILATION", 1), ("DEFORM_ON_PER_STAGE", [False] * 4)):
        if resnets[key] != value:
            raise ValueError(
                f"DEPLA-ResNet needs MODEL.RESNETS.{key} {value}, got {resnets[key]}: set it in the config."
            )
    return depla_resnet(
        resnets.DEPTH,
        depla=spec_of(node),
        stage=node.STAGE,
        blocks=node.BLOCKS,
        se_ratio=node.SE_RATIO,
        in_channels=input_shape.channels,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_fishnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FishNet:
    """FishNet of MODEL.FISHNET, with DEPLA in its UR and DR blocks unless MODEL.DEPLA.ENABLED is False.

    MODEL.BACKBONE.FREEZE_AT counts FishNet's own parts; the official training froze none: set 0.
    """
    fish = cfg.MODEL.FISHNET
    return FishNet(
        fish.DEPTH,
        in_channels=input_shape.channels,
        width=fish.WIDTH,
        norm=fish.NORM,
        aggregation=spec_of(cfg.MODEL.DEPLA),
        tap=fish.TAP,
        out_norm_act=fish.OUT_NORM_ACT,
        out_features=fish.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _with_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    return build_fpn(cfg, bottom_up, LastLevelMaxPool())


def _with_depla_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    return build_fpn(cfg, bottom_up, LastLevelMaxPool(), DEPLAFPN, depla=spec_of(cfg.MODEL.DEPLA_FPN))


@BACKBONE_REGISTRY.register()
def build_depla_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet, FPN-DEPLA and p6: the paper's detector of Table 4."""
    return _with_depla_fpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_depla_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """DEPLA-ResNet, FPN and p6."""
    return _with_fpn(cfg, build_depla_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_depla_resnet_depla_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """DEPLA-ResNet, FPN-DEPLA and p6: both sites at once."""
    return _with_depla_fpn(cfg, build_depla_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fishnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FishNet, FPN and p6: the paper's detectors of Table 5. MODEL.FPN.IN_FEATURES: fish2 to fish5."""
    return _with_fpn(cfg, build_fishnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_fishnet_depla_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FishNet, FPN-DEPLA and p6."""
    return _with_depla_fpn(cfg, build_fishnet_backbone(cfg, input_shape))
