"""The paper's training: 13 epochs of COCO at batch 8, long side 512; `model` files add the rest."""

from .....configs.common.data.coco import dataloader
from .....configs.common.optim import SGD as optimizer
from .....configs.common.schedule import steps as lr_multiplier
from .....configs.common.train import train

dataloader.train.total_batch_size = 8
dataloader.train.mapper.use_instance_mask = False
for resize in (dataloader.train.mapper.augmentations[0], dataloader.test.mapper.augmentations[0]):
    resize.update(short_edge_length=512, max_size=512)
del resize

optimizer.lr = 0.01
train.clip_grad_norm = 5.0
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 190_560  # 13 epochs of 117,266 images with objects
lr_multiplier.update(drops=[6 / 13, 10 / 13], warmup_iters=0)
