"""Faster R-CNN, FishNet150-FPN: Table 5, 40.6 AP."""

from .mask_rcnn_fishnet150_fpn_24e import dataloader, lr_multiplier, model, optimizer, train

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(key)
del key
dataloader.train.mapper.use_instance_mask = False
