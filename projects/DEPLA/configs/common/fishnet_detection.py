"""Table 5: 24 epochs with drops after 20 and 22, FishNet-150 and FPN, synchronised batch norm in the backbone."""

from .....configs.common.mmdetection_1x import dataloader, lr_multiplier, optimizer, pixels, train
from .....configs.common.models.mask_rcnn_fpn import model
from .depla_fishnet import backbone

model.update(pixels)
model.backbone.bottom_up = backbone
model.backbone.bottom_up.update(norm="SyncBN", out_features=["fish2", "fish3", "fish4", "fish5"])
dataloader.train.mapper.use_instance_mask = True
train.max_iter = 24 * 7330
lr_multiplier.drops = [20 / 24, 22 / 24]
