"""InterNet on the digit scenes, or data of one's own: configs/quickstart.py with units of 64 to 256 channels."""

from detectron2.layers import ShapeSpec

from ....configs.quickstart import dataloader, lr_multiplier, optimizer, train
from ....configs.quickstart import model as host
from .common.model import model

heads = model.roi_heads
heads.critic.update(hidden=128, dim=256)
# the levels' boundaries move with the anchors: 24 px, not 32, is the smallest
heads.box_pooler.update(assigner=dict(heads.box_pooler.assigner, base=168), sampling_ratio=1)
heads.box_head.update(input_shape=ShapeSpec(channels=64, height=14, width=14), fc_dims=[256, 256])
for key in ("num_classes", "batch_size_per_image", "positive_fraction"):
    heads[key] = host.roi_heads[key]
heads.box_predictor = host.roi_heads.box_predictor
host.roi_heads = heads
model = host
del heads, host, key
train.output_dir = "./output/internet_quick"
