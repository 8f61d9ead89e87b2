"""RepPoints on the digit scenes, or data of one's own: the backbone of configs/quickstart.py with levels P3 to P7.

Group norm in pyramid and towers: everything starts from nothing.
"""

from projects.Detectors.combine import with_reppoints

from ....configs.quickstart import dataloader, lr_multiplier, model, optimizer, train

model = with_reppoints(model, head=dict(norm="GN"), point_scale=4.0)  # that of the paper
model.backbone.norm = "GN"
train.output_dir = "./output/reppoints_quick"
