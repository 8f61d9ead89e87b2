"""RepPoints on the digit scenes, or data of one's own: the backbone of configs/quickstart.py with levels P3 to P7.

Group norm in pyramid and towers: everything starts from nothing.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from ....configs.quickstart import dataloader, lr_multiplier, optimizer, train
from ....configs.quickstart import model as host
from .common.reppoints import model

model.backbone = host.backbone
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.in_features = ["res3", "res4", "res5"]
model.backbone.top_block = L(LastLevelP6P7)(in_channels=256, out_channels="${..out_channels}")
model.backbone.norm = "GN"
model.head.norm = "GN"
model.num_classes = host.roi_heads.num_classes
model.pixel_mean = host.pixel_mean
model.pixel_std = host.pixel_std
train.output_dir = "./output/reppoints_quick"
del host
