"""MuSu on an R-50-FPN with MSFM, 1x. In no paper; everything else is MuSu's."""

from projects.combine import combine

from ...projects.MuSu.configs.musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model = combine(model, "msfm")
train.output_dir = "./output/combined/musu_msfm_r50_fpn_1x"
