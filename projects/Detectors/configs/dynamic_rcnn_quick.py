"""Dynamic R-CNN on the digit scenes, or data of one's own: configs/quickstart.py with moving thresholds."""

from ....configs.quickstart import dataloader, lr_multiplier, optimizer, train
from ....configs.quickstart import model as host
from .common.dynamic_rcnn import model

host.proposal_generator.nms_thresh = model.proposal_generator.nms_thresh
for key in ("_target_", "iou_topk", "beta_topk", "min_iou", "initial_beta", "sync"):
    host.roi_heads[key] = model.roi_heads[key]
host.roi_heads.update_interval = 20  # of 600 iterations
model = host
del host, key
train.output_dir = "./output/dynamic_rcnn_quick"
