"""VGG-16 with SSD's layers on VOC 07: the same detector without make-up, critic and intertwiner (ours)."""

from .internet_vgg16_voc07 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.update(makeup=None, critic=None, intertwiner=None)
model.roi_heads.box_head.fusion = "separate"
