"""A4: the bag is the 27 best anchors inside."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner.bag_filter = "topk"
