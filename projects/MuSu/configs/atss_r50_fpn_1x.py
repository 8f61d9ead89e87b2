"""The detector and training of musu_r50_fpn_1x.py with samples by ATSS: the baseline."""

from detectron2.config import LazyCall as L
from projects.MuSu import ATSSAssigner

from .musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.assigner = L(ATSSAssigner)(topk=9)
