"""Faster R-CNN, R-50-FPN, with LIP in the backbone, DEPLA in the pyramid and InterNet in the RoI heads. In no paper.

Data, weights and schedule are LIP's.
"""

from projects.combine import combine

from ...projects.LIP.configs.faster_rcnn_lip_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model = combine(model, "depla_fpn", "internet")
train.output_dir = "./output/combined/faster_rcnn_lip_depla_fpn_internet_r50_fpn_1x"
