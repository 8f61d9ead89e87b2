"""A small Faster R-CNN with DEPLA in a ResNet and in FPN on the digit scenes, from nothing, on a CPU.

configs/quickstart_bottleneck.py with DEPLA in res4 and in FPN; padding is masked.
"""

from projects.DEPLA.fpn import DEPLAFPN
from projects.DEPLA.padding import PaddingMaskRCNN
from projects.DEPLA.resnet import DEPLABottleneckBlock

from ....configs.quickstart_bottleneck import dataloader, lr_multiplier, model, optimizer, train
from .common.sites import backbone_depla, fpn_depla

model._target_ = PaddingMaskRCNN  # for mask_padding
backbone_depla.mask_padding = fpn_depla.mask_padding = True
model.backbone._target_ = DEPLAFPN
model.backbone.depla = fpn_depla
model.backbone.bottom_up.stages[2].update(block_class=DEPLABottleneckBlock, depla=backbone_depla)  # res4
train.output_dir = "./output/depla_quick"
del backbone_depla, fpn_depla  # a config's variables are its keys
