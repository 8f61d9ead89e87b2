"""InterNet in a Mask R-CNN; mask branch untouched (mask_uses_makeup shares the made-up features)."""

from ....configs.common.models.mask_rcnn_fpn import model as mask_rcnn
from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = mask_rcnn.roi_heads[key]
del key, mask_rcnn
dataloader.train.mapper.use_instance_mask = True
