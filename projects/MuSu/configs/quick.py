"""A small MuSu on the digit scenes, or data of one's own: minutes on two CPU cores, from nothing."""

from .common.model import model
from .common.small import backbone, dataloader, head, lr_multiplier, optimizer, pixel_std, train

model.backbone, model.pixel_std = backbone, pixel_std
model.head.update(head)
model.num_classes = 10
model.anchor_generator.scale = 4.0  # from 32 px: the scenes are of about 200 px
del backbone, head, pixel_std  # a config's variables are its keys
train.output_dir = "./output/musu_quick"
