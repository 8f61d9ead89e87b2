"""FCOS, R-50-FPN, 1x: the baseline, without the centre sampling of FCOS' second version."""

from ....configs.common.models.fcos import model
from .common.recipe import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.freeze_at = 2  # stem and res2
model.center_sampling_radius = float("inf")
optimizer.lr = 0.01
train.output_dir = "./output/labelenc/fcos_r50_fpn_1x"
