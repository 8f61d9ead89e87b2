"""faster_rcnn.py with a process that dies after some images: in training, or in the evaluation at its end."""

from tests.reliability.dying_mapper import DyingMapper

from .faster_rcnn import dataloader, lr_multiplier, model, optimizer, train

for part in (dataloader.train, dataloader.test):
    part.mapper.update(_target_=DyingMapper, rank=-1, how="", after=2, note="${train.output_dir}/died")
del part  # a config's variables are its keys
dataloader.train.total_batch_size = 4
train.max_iter = 4
