"""Faster R-CNN, R-50-FPN, with the released code's box losses and pooling: Detectron1's, not Detectron2's defaults."""

from .....configs.common.models.faster_rcnn_fpn import model

model.backbone.bottom_up.freeze_at = 2  # stem and res2
model.proposal_generator.smooth_l1_beta = 1 / 9
model.roi_heads.box_predictor.smooth_l1_beta = 1.0
model.roi_heads.box_pooler.update(pooler_type="ROIAlign", sampling_ratio=2)
