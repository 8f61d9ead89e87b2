"""InterNet in the first stage of a Cascade R-CNN."""

from detectron2.config import LazyCall as L
from projects.InterNet import InterNetCascadeROIHeads, InterNetConvFCHead

from ....configs.common.models.cascade_faster_rcnn_fpn import model as cascade
from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

heads = cascade.roi_heads
first = model.roi_heads.pop("box_head")
later = L(InterNetConvFCHead)(input_shape=first.input_shape, fc_dims=first.fc_dims, fusion="separate")
for key in ("box_predictor", "proposal_matcher"):
    model.roi_heads.pop(key)
model.roi_heads.update(
    _target_=InterNetCascadeROIHeads,
    box_heads=[first, later, later],
    box_predictors=heads.box_predictors,
    proposal_matchers=heads.proposal_matchers,
)
del heads, first, later, key, cascade
