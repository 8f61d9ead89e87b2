"""MuSu as a function of a LazyConfig model: a dense detector on its backbone."""

from typing import Any

from omegaconf import DictConfig

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from projects import hosts


def with_musu(model: DictConfig, **knobs: Any) -> DictConfig:
    """MuSu on the host's backbone, levels P3 to P7, in the place of its head and losses or of its R-CNN.

    The towers are as the host's, if it has any; P6 comes from P5. Anchors are as much smaller as the host's smallest is
    than COCO's 32 px. knobs: of `MuSu`: assigner, cls_loss, anchor_generator, head, normalizer, ...
    """
    model = hosts.copy_of(model)
    own = hosts.project_node("MuSu/configs/common/model.py", "model")
    scale = own.anchor_generator.scale * hosts.smallest_anchor(model) / hosts.COCO_ANCHOR
    own.update(hosts.dense_host(model, "MuSu"))
    top = own.backbone.get("top_block")
    if top is not None and hosts.target_of(top) is LastLevelP6P7:
        top.update(in_feature="p5", in_channels="${..out_channels}")
    levels, channels = own.head_in_features, hosts.channels_of(own.backbone)
    own.anchor_generator.update(strides=[2 ** int(level[1:]) for level in levels], scale=scale)
    convs = model.get("head", {}).get("conv_dims") or [channels] * len(own.head.conv_dims)
    own.head.update(input_shape=[ShapeSpec(channels=channels)] * len(levels), conv_dims=convs)
    hosts.set_knobs(own, knobs, "MuSu")
    return own
