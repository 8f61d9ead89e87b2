"""The default data set: handwritten digits on photographs, made on first use."""

from .coco import dataloader

dataloader.train.dataset.names = "digits_train"
dataloader.train.mapper.augmentations[0].short_edge_length = (160, 192)
dataloader.train.mapper.augmentations[0].max_size = 256
dataloader.train.mapper.augmentations.pop(1)  # no flips: a mirrored digit is another sign
dataloader.train.num_workers = 1
dataloader.test.dataset.names = "digits_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 192
dataloader.test.mapper.augmentations[0].max_size = 256
dataloader.test.num_workers = 1
