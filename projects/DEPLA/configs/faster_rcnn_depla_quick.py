"""A small Faster R-CNN with DEPLA in a ResNet and in FPN on the digit scenes, from nothing, on a CPU.

The quickstart's detector with bottleneck blocks, since DEPLA stands in those.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from projects.DEPLA.fpn import DEPLAFPN
from projects.DEPLA.padding import PaddingMaskRCNN
from projects.DEPLA.resnet import DEPLABottleneckBlock

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train
from .common.sites import backbone_depla, fpn_depla

model._target_ = PaddingMaskRCNN  # for mask_padding
backbone_depla.mask_padding = fpn_depla.mask_padding = True
model.backbone._target_ = DEPLAFPN
model.backbone.depla = fpn_depla
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=DEPLABottleneckBlock,
        num_blocks=1,
        in_channels=in_channels,
        out_channels=width * 4,
        bottleneck_channels=width,
        stride_per_block=[stride],
        norm="BN",
        depla=backbone_depla if width == 64 else None,  # res4
    )
    for in_channels, width, stride in ((32, 16, 1), (64, 32, 2), (128, 64, 2), (256, 128, 2))
]
train.output_dir = "./output/depla_quick"
del backbone_depla, fpn_depla  # a config's variables are its keys
