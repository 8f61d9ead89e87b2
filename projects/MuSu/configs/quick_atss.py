"""Baseline: the detector of quick.py with samples by ATSS."""

from detectron2.config import LazyCall as L
from projects.MuSu import ATSSAssigner

from .quick import dataloader, lr_multiplier, model, optimizer, train

model.assigner = L(ATSSAssigner)(topk=9)
train.output_dir = "./output/musu_quick_atss"
