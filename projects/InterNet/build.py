"""From MODEL.INTERNET to the parts that the RoI heads take as arguments."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, build_box_head

from .assign import LevelAssigner
from .buffer import ClassBuffer
from .intertwiner import GENERATED, FeatureIntertwiner
from .pooler import InterNetROIPooler
from .transport import ScaleOT
from .units import Critic, MakeUp


def _shapes(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> list[ShapeSpec]:
    """Of MODEL.ROI_HEADS.IN_FEATURES. ValueError unless there are NUM_LEVELS, with equal channels."""
    shapes = [input_shape[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    wanted = cfg.MODEL.INTERNET.NUM_LEVELS
    if len(shapes) != wanted or len({s.channels for s in shapes}) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES names {len(shapes)} maps of {[s.channels for s in shapes]} channels; "
            f"InterNet needs MODEL.INTERNET.NUM_LEVELS = {wanted} of them, with equal channels."
        )
    return shapes


def _make_pooler(cfg: CfgNode, shapes: list[ShapeSpec]) -> InterNetROIPooler:
    node, box = cfg.MODEL.INTERNET, cfg.MODEL.ROI_BOX_HEAD
    assigner = LevelAssigner(
        rule=node.ASSIGN.RULE,
        base=node.ASSIGN.BASE,
        rounding=node.ASSIGN.ROUNDING,
        roi_size=node.ROI_SIZE,
        num_levels=node.NUM_LEVELS,
    )
    scales = [1.0 / s.stride for s in shapes]
    return InterNetROIPooler(node.ROI_SIZE, scales, box.POOLER_SAMPLING_RATIO, box.POOLER_TYPE, assigner=assigner)


def make_box_parts(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
    """box_in_features, box_pooler, box_head and box_predictor. ROI_SIZE is the side of the pooled features;
    ROI_BOX_HEAD.POOLER_RESOLUTION, that of what fc1 sees."""
    shapes = _shapes(cfg, input_shape)
    side = cfg.MODEL.INTERNET.ROI_SIZE
    head = build_box_head(cfg, ShapeSpec(channels=shapes[0].channels, height=side, width=side))
    return {
        "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
        "box_pooler": _make_pooler(cfg, shapes),
        "box_head": head,
        "box_predictor": FastRCNNOutputLayers(cfg, head.output_shape),
    }


def make_cascade_box_parts(cfg: CfgNode, parts: dict, input_shape: dict[str, ShapeSpec]) -> dict:
    """CascadeROIHeads' box parts with InterNet's pooler, and heads of which only the first fuses."""
    shapes = _shapes(cfg, input_shape)
    side = cfg.MODEL.INTERNET.ROI_SIZE
    shape = ShapeSpec(channels=shapes[0].channels, height=side, width=side)
    separate = cfg.clone()
    separate.defrost()
    separate.MODEL.INTERNET.FUSION = "separate"
    heads = [build_box_head(cfg if stage == 0 else separate, shape) for stage in range(len(parts["box_heads"]))]
    return {**parts, "box_pooler": _make_pooler(cfg, shapes), "box_heads": heads}


def make_units(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
    """makeup, critic, intertwiner and their switches. ENABLED False has none of the three; BASELINE_MAKEUP, no
    intertwiner, and no critic that nothing would read."""
    node = cfg.MODEL.INTERNET
    shapes = _shapes(cfg, input_shape)
    channels = shapes[0].channels
    parts = {"makeup": None, "critic": None, "intertwiner": None}
    if node.ENABLED:
        num_units = len(shapes) if node.MAKEUP_PER_LEVEL else 1
        parts["makeup"] = MakeUp(channels=channels, norm=node.NORM, num_units=num_units)
        if not node.BASELINE_MAKEUP or node.FUSION != "separate":
            parts["critic"] = _make_critic(node, channels)
        if not node.BASELINE_MAKEUP:
            parts["intertwiner"] = _make_intertwiner(node, channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    return {**parts, "makeup_on": node.MAKEUP_ON, "mask_uses_makeup": node.MASK_USES_MAKEUP}


def _make_critic(node: CfgNode, channels: int) -> Critic:
    return Critic(
        channels=channels,
        roi_size=node.ROI_SIZE,
        hidden=node.CRITIC_HIDDEN,
        dim=node.CRITIC_DIM,
        norm=node.NORM,
        variant=node.CRITIC_VARIANT,
        activation="softmax" if node.LOSS == "kl" else "sigmoid",
        extra_1x1=node.CRITIC_EXTRA_1X1,
    )


def _make_intertwiner(node: CfgNode, channels: int, num_classes: int) -> FeatureIntertwiner:
    buffer = ClassBuffer(
        num_classes=num_classes,
        dim=node.CRITIC_DIM,
        mode=node.BUFFER.MODE,
        window=node.BUFFER.WINDOW,
        decay=node.BUFFER.DECAY,
        per_level=node.BUFFER.PER_LEVEL,
        num_levels=node.NUM_LEVELS,
        save_window=node.BUFFER.SAVE_WINDOW,
    )
    return FeatureIntertwiner(
        buffer=buffer,
        loss=node.LOSS,
        loss_weight=node.LOSS_WEIGHT,
        reduction=node.REDUCTION,
        last_level_loss=node.LAST_LEVEL_LOSS,
        start_iter=node.START_ITER,
        detach=node.BUFFER.DETACH,
        large_source=node.LARGE_SOURCE,
        large_pairs=node.LARGE_PAIRS,
        transport=_make_transport(node, channels) if node.LARGE_SOURCE in GENERATED else None,
        big_supervise=node.BIG_SUPERVISE,
    )


def _make_transport(node: CfgNode, channels: int) -> ScaleOT:
    """Only source "d" has a loss; "c_bilinear" has no parameters either."""
    ot = node.OT
    return ScaleOT(
        channels=channels,
        num_levels=node.NUM_LEVELS,
        loss=ot.LOSS if node.LARGE_SOURCE == "d" else "none",
        weight=ot.WEIGHT,
        eps=ot.EPS,
        iters=ot.ITERS,
        pairs=ot.PAIRS,
        generator="bilinear" if node.LARGE_SOURCE == "c_bilinear" else ot.GENERATOR,
        critic_mode=ot.CRITIC_MODE,
        backprop_plan=ot.BACKPROP_PLAN,
        log_domain=ot.LOG_DOMAIN,
        norm=node.NORM,
    )
