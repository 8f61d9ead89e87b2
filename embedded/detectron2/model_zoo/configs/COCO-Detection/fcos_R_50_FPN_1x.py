"""FCOS with group norm in its head, R-50-FPN, 1x; trained like RetinaNet."""

from ..common.models.fcos import model
from .retinanet_R_50_FPN_1x import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.freeze_at = 2
