"""Table 5: 24 epochs with drops after 20 and 22, FishNet-150 and FPN, synchronised batch norm in the backbone."""

from .....configs.common.models.mask_rcnn_fpn import model
from .depla_fishnet import backbone
from .detection import dataloader, lr_multiplier, optimizer, pixels, train

model.update(pixels)
model.backbone.bottom_up = backbone
model.backbone.bottom_up.update(norm="SyncBN", out_features=["fish2", "fish3", "fish4", "fish5"])
optimizer.params.weight_decay_norm = None  # norms decay like everything else
train.max_iter = 24 * 7330
lr_multiplier.drops = [20 / 24, 22 / 24]
