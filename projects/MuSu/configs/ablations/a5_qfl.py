"""A5: quality focal loss on the soft labels."""

from detectron2.config import LazyCall as L
from projects.MuSu import QualityFocal

from ..musu_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.cls_loss = L(QualityFocal)(beta=2.0)
