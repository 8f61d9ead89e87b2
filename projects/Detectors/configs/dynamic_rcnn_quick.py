"""Dynamic R-CNN on the digit scenes, or data of one's own: configs/quickstart.py with moving thresholds."""

from projects.Detectors.combine import with_dynamic

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

model = with_dynamic(model, update_interval=20)  # of 600 iterations
train.output_dir = "./output/dynamic_rcnn_quick"
