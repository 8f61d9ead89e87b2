"""The 800-pixel setting: short side 800, long side 1333 (ours; the authors' code 1024)."""

from .training import dataloader, lr_multiplier, optimizer, train

for resize in (dataloader.train.mapper.augmentations[0], dataloader.test.mapper.augmentations[0]):
    resize.update(short_edge_length=800, max_size=1333)
del resize
