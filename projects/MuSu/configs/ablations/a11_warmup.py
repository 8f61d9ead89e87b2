"""A11: the first four epochs assign by the anchors' IoU."""

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.warmup_iters = 29_320  # 4 x 117,266 images / 16
