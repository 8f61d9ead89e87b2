"""Mask R-CNN, R-50-FPN, 1x: the baseline. The other mask_rcnn configs state what they change."""

from ....configs.common.models.mask_rcnn_fpn import model as _mask_rcnn
from .common.faster_rcnn import model
from .common.recipe import dataloader, lr_multiplier, optimizer, train

for key in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads[key] = _mask_rcnn.roi_heads[key]
model.roi_heads.mask_pooler.update(pooler_type="ROIAlign", sampling_ratio=2)
dataloader.train.mapper.use_instance_mask = True
train.output_dir = "./output/labelenc/mask_rcnn_r50_fpn_1x"
