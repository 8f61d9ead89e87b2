"""RetinaNet, R-101-FPN, 1x."""

from .retinanet_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "./output/labelenc/retinanet_r101_fpn_1x"
