"""Grid R-CNN on the digit scenes, or data of one's own: configs/quickstart.py with a grid head of 0.7 M parameters."""

from detectron2.layers import ShapeSpec

from ....configs.quickstart import dataloader, lr_multiplier, optimizer, train
from ....configs.quickstart import model as host
from .common.grid_rcnn import model

heads = model.roi_heads
heads.grid_pooler.sampling_ratio = 1
heads.grid_head.update(input_shape=ShapeSpec(channels=64, height=14, width=14), num_convs=4, point_channels=16)
heads.max_samples = 64
heads.box_predictor.input_shape = ShapeSpec(channels=256)
for key in ("num_classes", "batch_size_per_image", "box_pooler", "box_head"):
    heads[key] = host.roi_heads[key]
host.roi_heads = heads
model = host
del heads, host, key
train.output_dir = "./output/grid_rcnn_quick"
