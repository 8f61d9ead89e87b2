"""VOC 07+12 trainval, tested on 2007, 13 epochs at batch 8 (ours: the paper gives neither schedule nor sizes)."""

from .....configs.common.data.voc import dataloader
from .training import lr_multiplier, optimizer, train

dataloader.train.total_batch_size = 8
dataloader.train.mapper.augmentations[0].update(short_edge_length=600, max_size=1000)
dataloader.test.mapper.augmentations[0].update(short_edge_length=600, max_size=1000)
train.max_iter = 26_900  # 13 epochs of 16,551 images
