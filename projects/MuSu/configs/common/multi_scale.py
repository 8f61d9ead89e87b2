"""Twice the training, short sides 640 to 800."""

from .training import dataloader, lr_multiplier, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [640, 672, 704, 736, 768, 800]
train.max_iter = 180_000
