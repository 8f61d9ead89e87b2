"""InterNet, Table 4, multi-scale training, 1.5x schedule; the paper gives no details, sizes are ours."""

from .internet_r101_fpn_800_testdev import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [640, 672, 704, 736, 768, 800]
train.max_iter = 285_840  # 19.5 epochs
