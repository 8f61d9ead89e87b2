"""Grid R-CNN, Dynamic R-CNN and RepPoints as functions of a LazyConfig model: RoI heads, or a dense detector's head."""

from typing import Any

from omegaconf import DictConfig

from detectron2.layers import ShapeSpec
from projects import hosts, mixed_roi_heads

from .dynamic_rcnn import DynamicROIHeads
from .grid_rcnn import GridROIHeads


def with_dynamic(model: DictConfig, **knobs: Any) -> DictConfig:
    """Dynamic R-CNN's moving threshold and beta in the host's RoI heads, with its RPN's threshold of NMS.

    knobs: of `DynamicROIHeads`: iou_topk, update_interval, ...
    """
    model = hosts.copy_of(model)
    heads = hosts.require_roi_heads(model, "Dynamic R-CNN")
    own = hosts.project_node("Detectors/configs/common/dynamic_rcnn.py", "model")
    heads._target_ = mixed_roi_heads.with_class(hosts.target_of(heads), DynamicROIHeads)
    for key in ("iou_topk", "beta_topk", "update_interval", "min_iou", "initial_beta", "sync"):
        heads[key] = own.roi_heads[key]
    model.proposal_generator.nms_thresh = own.proposal_generator.nms_thresh
    hosts.set_knobs(heads, knobs, "Dynamic R-CNN")
    return model


def with_grid(model: DictConfig, **knobs: Any) -> DictConfig:
    """Grid R-CNN's grid head behind the host's box branch, which only classifies then; masks stay.

    knobs: of `GridROIHeads`: grid_head, grid_pooler, box_predictor, jitter, max_samples. Channels of a point and the
    pooler's sampling follow the host.
    """
    model = hosts.copy_of(model)
    heads = hosts.require_roi_heads(model, "Grid R-CNN")
    own = hosts.project_node("Detectors/configs/common/grid_rcnn.py", "model").roi_heads
    heads._target_ = mixed_roi_heads.with_class(hosts.target_of(heads), GridROIHeads)
    channels = hosts.channels_of(model.backbone)
    side = own.grid_pooler.output_size
    own.grid_head.update(
        input_shape=ShapeSpec(channels=channels, height=side, width=side),
        point_channels=max(4, own.grid_head.point_channels * channels // own.grid_head.input_shape.channels),
    )
    for key in ("scales", "sampling_ratio", "pooler_type"):
        own.grid_pooler[key] = heads.box_pooler[key]
    own.box_predictor.input_shape = heads.box_predictor.input_shape
    for key in ("box_predictor", "grid_pooler", "grid_head", "jitter", "max_samples"):
        heads[key] = own[key]
    hosts.set_knobs(heads, knobs, "Grid R-CNN")
    return model


def with_reppoints(model: DictConfig, **knobs: Any) -> DictConfig:
    """RepPoints on the host's backbone, levels P3 to P7, in the place of its head and losses or of its R-CNN.

    point_scale is as much smaller as the host's smallest anchor is than COCO's 32 px. knobs: of `RepPoints`: head,
    box_matcher, point_scale, ...
    """
    model = hosts.copy_of(model)
    own = hosts.project_node("Detectors/configs/common/reppoints.py", "model")
    own.point_scale *= hosts.smallest_anchor(model) / hosts.COCO_ANCHOR
    own.update(hosts.dense_host(model, "RepPoints"))
    hosts.set_knobs(own, knobs, "RepPoints")
    return own
