"""InterNet as a function of a LazyConfig model: in the RoI heads of its R-CNN."""

from typing import Any

from omegaconf import DictConfig

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import CascadeROIHeads
from projects import hosts, mixed_roi_heads
from shared.errors import UserError

from .box_head import InterNetConvFCHead
from .cascade import InterNetCascadeROIHeads
from .roi_heads import InterNetROIHeads, IntertwinedMixin

METHOD = "InterNet"


def with_internet(model: DictConfig, *, ot: bool = False, **knobs: Any) -> DictConfig:
    """Make-up unit, critic and intertwiner in the host's RoI heads, in the first stage of a cascade; masks stay as they
    are. Sampling, thresholds and the box predictor stay the host's.

    ot: large objects from source (d), OT: the paper's best. knobs: of the RoI heads, such as makeup and intertwiner.
    Widths follow the host's: fc1 must be as wide as the critic's feature. The levels' boundaries move with its smallest
    anchor, from 224 px at 32.
    """
    model = hosts.copy_of(model)
    host = hosts.require_roi_heads(model, METHOD)
    if issubclass(hosts.target_of(host), IntertwinedMixin):
        raise UserError(f"The model has {METHOD} already.")
    heads = hosts.project_node("InterNet/configs/common/model.py", "model").roi_heads
    own_box_head = _fit(heads, host, model.backbone, hosts.smallest_anchor(model))
    if issubclass(hosts.target_of(host), CascadeROIHeads):
        later = L(InterNetConvFCHead)(
            input_shape=own_box_head.input_shape, fc_dims=own_box_head.fc_dims, fusion="separate"
        )
        heads.pop("box_head")
        heads.pop("box_predictor")
        heads.pop("proposal_matcher")
        heads.box_heads = [own_box_head, *[later] * (len(host.box_heads) - 1)]
        heads._target_ = InterNetCascadeROIHeads
    else:
        heads._target_ = mixed_roi_heads.with_class(hosts.target_of(host), InterNetROIHeads)
    for key in host:
        if key not in ("_target_", "box_pooler", "box_head", "box_heads"):
            heads[key] = host[key]
    model.roi_heads = heads
    if ot:
        transport = hosts.project_node("InterNet/configs/common/transport.py", "transport")
        model.roi_heads.intertwiner.update(large_source="d", transport=transport)
    hosts.set_knobs(model.roi_heads, knobs, METHOD)
    if hosts.shares_heads(model):
        without_batch_norm(model)
    return model


def _fit(heads: DictConfig, host: DictConfig, backbone: DictConfig, anchor: float) -> DictConfig:
    """Give InterNet's RoI heads the host's widths and levels; returns their box head."""
    host_head = host.box_heads[0] if "box_heads" in host else host.box_head
    if not host_head.get("fc_dims"):
        raise UserError(
            "InterNet mixes the critic's feature in behind the first fc layer, and the host's box head has none."
        )
    pooler, narrow = heads.box_pooler, heads.box_head.fc_dims[0] / host_head.fc_dims[0]
    heads.critic.update(hidden=round(heads.critic.hidden / narrow), dim=host_head.fc_dims[0])
    for key in ("scales", "sampling_ratio", "pooler_type"):
        pooler[key] = host.box_pooler[key]
    pooler.output_size = 2 * host.box_pooler.output_size  # the box head averages pairs of cells
    levels = len(pooler.scales)
    assigner = {"base": pooler.assigner.base * anchor / hosts.COCO_ANCHOR, "num_levels": levels}
    pooler.assigner.update(assigner, roi_size=pooler.output_size)
    heads.intertwiner.buffer.num_levels = levels
    side = pooler.output_size
    shape = ShapeSpec(channels=hosts.channels_of(backbone), height=side, width=side)
    heads.box_head.update(input_shape=shape, fc_dims=host_head.fc_dims)
    if host_head.get("conv_dims"):
        heads.box_head.update(conv_dims=host_head.conv_dims, conv_norm=host_head.get("conv_norm", ""))
    return heads.box_head


def without_batch_norm(model: DictConfig) -> None:
    """Group norm in the place of batch norm in InterNet's units, if there are any: LabelEnc's step 1 runs the RoI heads
    on two kinds of maps, whose statistics batch norm would mix."""
    makeup = model.get("roi_heads", {}).get("makeup")
    if makeup is not None and makeup.norm in ("BN", "SyncBN"):
        makeup.norm = "GN"  # critic and transport read it here
