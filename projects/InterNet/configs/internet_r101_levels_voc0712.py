"""InterNet, Table 5: R-101 without FPN on VOC 07+12. Levels are reduced to 256 channels by 1x1 convolutions (ours)."""

from detectron2.config import LazyCall as L
from projects.InterNet.backbones import ReducedLevels

from .common.model import model
from .common.training_voc import dataloader, lr_multiplier, optimizer, train

bottom_up = model.backbone.bottom_up
bottom_up.stages.depth = 101
model.backbone = L(ReducedLevels)(
    bottom_up=bottom_up, in_features="${.bottom_up.out_features}", out_channels=256, norm=""
)
del bottom_up
rpn = model.proposal_generator
rpn.in_features = ["p2", "p3", "p4", "p5"]
rpn.anchor_generator.update(sizes=[[32, 64], [96, 128], [192, 256], [384, 512]], strides=[4, 8, 16, 32])  # ours
rpn.head.num_anchors = 6
del rpn
model.roi_heads.num_classes = 20
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
