"""RetinaNet, R-50-FPN, 1x: the baseline. The other retinanet configs state what they change."""

from ....configs.common.models.retinanet import model
from .common.recipe import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.freeze_at = 2  # stem and res2
optimizer.lr = 0.01
train.output_dir = "./output/labelenc/retinanet_r50_fpn_1x"
