"""ResNet-101's stages with modulated deformable convolutions (v2) in res3-res5, as in the released code."""

from .....configs.common.models.resnet_dcn import stages

stages.update(depth=101, deform_modulated=True)
