"""The registered backbones: LIP-ResNet and LIP-DenseNet, alone and with a feature pyramid."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from shared.modeling.fpn import build_fpn

from .config import pooling_of
from .densenet import DenseNet
from .resnet import lip_resnet


@BACKBONE_REGISTRY.register()
def build_lip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """LIP-ResNet of MODEL.RESNETS and MODEL.LIP, frozen up to MODEL.BACKBONE.FREEZE_AT.

    ValueError: a value of MODEL.RESNETS that LIP-ResNet does not have.
    """
    lip, resnets = cfg.MODEL.LIP, cfg.MODEL.RESNETS
    for key, value in (("STRIDE_IN_1X1", False), ("NUM_GROUPS", 1), ("RES5_DILATION", 1), ("WIDTH_PER_GROUP", 64)):
        if resnets[key] != value:
            raise ValueError(f"LIP-ResNet needs MODEL.RESNETS.{key} {value}, got {resnets[key]}: set it in the config.")
    return lip_resnet(
        resnets.DEPTH,
        in_channels=input_shape.channels,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        norm=resnets.NORM,
        pooling=pooling_of(cfg, lip.LOGIT_INIT),
        sites=lip.SITES,
        kernel_after=lip.KERNEL_AFTER,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_stem_pool=lip.FREEZE_STEM_POOL,
    )


@BACKBONE_REGISTRY.register()
def build_lip_densenet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DenseNet:
    """LIP-DenseNet-121 of MODEL.LIP.DENSENET; with no SITES the plain DenseNet-121."""
    lip = cfg.MODEL.LIP
    return DenseNet(
        in_channels=input_shape.channels,
        norm=lip.DENSENET.NORM,
        pooling=pooling_of(cfg, lip.DENSENET.LOGIT_INIT),
        sites=lip.DENSENET.SITES,
        out_features=lip.DENSENET.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_stem_pool=lip.FREEZE_STEM_POOL,
    )


@BACKBONE_REGISTRY.register()
def build_lip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """LIP-ResNet, FPN and p6: for Faster and Mask R-CNN."""
    return build_fpn(cfg, build_lip_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_lip_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """LIP-ResNet, FPN, p6 and p7 (from res5): for RetinaNet."""
    bottom_up = build_lip_resnet_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_lip_densenet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """LIP-DenseNet-121, FPN and p6: for Faster and Mask R-CNN."""
    return build_fpn(cfg, build_lip_densenet_backbone(cfg, input_shape), LastLevelMaxPool())
