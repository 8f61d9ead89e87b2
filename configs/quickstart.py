"""A small Faster R-CNN on the digit scenes: minutes on two CPU cores, from nothing.

The same file is a start for data of one's own: see train_net.py's --train-json.
"""

from omegaconf import OmegaConf

from .common.data.digits import dataloader
from .common.models.faster_rcnn_small import model
from .common.optim import AdamW as optimizer
from .common.schedule import cosine as lr_multiplier
from .common.train import train

dataloader.train.total_batch_size = 8
dataloader.train.mapper.use_instance_mask = False

optimizer.lr = 2e-3
optimizer.weight_decay = 0.05
lr_multiplier.update(end_value=0.01, warmup_iters=30, warmup_factor=0.01)

train = OmegaConf.merge(
    train,
    dict(
        output_dir="./output/quickstart",
        max_iter=600,
        eval_period=0,  # once, at the end
        checkpointer=dict(period=200),
        device="cpu",
        seed=0,
    ),
)
