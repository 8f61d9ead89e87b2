"""Grid R-CNN, R-50-FPN, mmdetection's 2x: 25 epochs and a long warm-up."""

from .grid_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 25 * 7330
lr_multiplier.update(drops=[17 / 25, 23 / 25], warmup_iters=3665, warmup_factor=1 / 80)
