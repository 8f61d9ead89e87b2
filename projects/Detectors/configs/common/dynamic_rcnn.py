"""Dynamic R-CNN with a ResNet-50-FPN (arXiv:2004.06002)."""

from projects.Detectors.dynamic_rcnn import DynamicROIHeads

from .faster_rcnn import model

model.proposal_generator.nms_thresh = 0.85
model.roi_heads.update(
    _target_=DynamicROIHeads,  # proposal_matcher's threshold is that of the first interval
    iou_topk=75,
    beta_topk=10,
    update_interval=100,
    min_iou=0.4,
    initial_beta=1.0,
    sync=False,
)
