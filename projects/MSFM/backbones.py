"""The registered backbones: a ResNet with MSFMs, alone and with the feature pyramids of R-CNN and RetinaNet."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from shared.modeling.fpn import build_fpn

from .config import spec_of
from .resnet import make_msfm_stages


@BACKBONE_REGISTRY.register()
def build_msfm_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet of MODEL.RESNETS with the modules of MODEL.MSFM, frozen up to MODEL.BACKBONE.FREEZE_AT.

    ValueError: a value that MSFM does not go with; see `make_msfm_stages`.
    """
    if not cfg.MODEL.MSFM.ENABLED:
        return build_resnet_backbone(cfg, input_shape)
    resnets = cfg.MODEL.RESNETS
    if resnets.RES5_DILATION != 1:
        raise ValueError(
            f"MSFM-ResNet needs MODEL.RESNETS.RES5_DILATION 1, got {resnets.RES5_DILATION}: set it in the config."
        )
    stem = BasicStem(in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    stages = make_msfm_stages(
        resnets.DEPTH,
        msfm=spec_of(cfg),
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        deform_modulated=resnets.DEFORM_MODULATED,
        deform_num_groups=resnets.DEFORM_NUM_GROUPS,
    )
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_msfm_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MSFM-ResNet, FPN and p6: for Faster, Mask and Cascade R-CNN."""
    return build_fpn(cfg, build_msfm_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_msfm_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MSFM-ResNet, FPN, p6 and p7 (from res5): for RetinaNet."""
    bottom_up = build_msfm_resnet_backbone(cfg, input_shape)
    top_block = LastLevelP6P7(bottom_up.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_fpn(cfg, bottom_up, top_block)
