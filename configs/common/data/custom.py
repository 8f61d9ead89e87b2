"""Any data in COCO's format: set the four paths here, in a config or by train_net.py's flags."""

from detectron2.config import LazyCall as L
from shared.data.coco_sets import register_coco_set

from .coco import dataloader

dataloader.train.dataset.names = L(register_coco_set)(json_file="???", image_root="???")
dataloader.train.mapper.use_instance_mask = False
dataloader.test.dataset.names = L(register_coco_set)(json_file="???", image_root="???")
