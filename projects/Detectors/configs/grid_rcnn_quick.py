"""Grid R-CNN on the digit scenes, or data of one's own: configs/quickstart.py with a grid head of 0.7 M parameters."""

from projects.Detectors.combine import with_grid

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

model = with_grid(model, grid_head=dict(num_convs=4), max_samples=64)
train.output_dir = "./output/grid_rcnn_quick"
