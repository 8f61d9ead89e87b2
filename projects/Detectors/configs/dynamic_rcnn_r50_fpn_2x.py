"""Dynamic R-CNN, R-50-FPN, 2x: 24 epochs, the learning rate drops after 16 and 22."""

from .dynamic_rcnn_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

train.max_iter = 24 * 7330
