"""What the functions that apply a method to a LazyConfig model, its host, need to read and to change in it."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.registry import locate
from projects.DEPLA.padding import PaddingMaskRCNN
from shared.errors import UserError, nearest
from shared.modeling.changed_resnet import changed_resnet
from shared.modeling.fishnet import FishNet
from shared.modeling.se_resnet import SEBottleneckBlock

PROJECTS = Path(__file__).resolve().parent
RES2_CHANNELS = 256  # of a ResNet-50: hosts with fewer are narrow
FISHNET_WIDTH = 33 * 64  # channels of a FishNet-150's fish5
COCO_ANCHOR = 32  # pixels: side of the smallest anchor where objects are as large as COCO's
RES5 = "res5"  # what LastLevelP6P7 reads unless told otherwise
DENSE_LEVELS = ["p3", "p4", "p5", "p6", "p7"]
OF_METHODS = ("projects.", FishNet.__module__, SEBottleneckBlock.__module__)  # modules of what a plain host has not
NO_RESNET = {  # why methods for ResNets do not fit into other backbones
    "FishNet": "its blocks are pre-activation and never strided, and it keeps features by concatenation",
    "DenseNet": "its layers concatenate, without bottleneck blocks and their sums",
    "MobileNetV2": "its blocks are inverted, with depthwise convolutions",
}


def copy_of(model: DictConfig) -> DictConfig:
    """A copy to change. UserError: no config of a model."""
    if not isinstance(model, DictConfig) or "_target_" not in model or "backbone" not in model:
        raise UserError("Methods are applied to a LazyConfig's model with a backbone: this is none.")
    return copy.deepcopy(model)


def target_of(node: DictConfig) -> Any:
    """What the node calls."""
    return locate(node._target_) if isinstance(node._target_, str) else node._target_


def project_node(file: str, key: str) -> DictConfig:
    """A fresh copy of one of a project's own building blocks: file below projects/, name of the variable.

    ValueError: a file elsewhere. A text, such as a saved config's, must not have it run.
    """
    path = (PROJECTS / file).resolve()
    if not path.is_relative_to(PROJECTS):
        raise ValueError(f"project_node reads files below {PROJECTS}, got {file!r}.")
    return LazyConfig.load(str(path), key)


def set_knobs(node: DictConfig, knobs: Mapping[str, Any], method: str) -> None:
    """Change values of a method's node; a mapping changes values of the node under its key, a call replaces it.

    UserError: neither the node nor what it calls has such a key.
    """
    arguments = inspect.signature(target_of(node)).parameters if "_target_" in node else ()
    for key, value in knobs.items():
        if key not in node and key not in arguments:
            known = [k for k in {**node, **dict.fromkeys(arguments)} if k != "_target_"]
            raise UserError(
                f"{method} has no knob {key!r}{nearest(key, known) or ': it has ' + ', '.join(known) + '.'}"
            )
        if isinstance(value, Mapping) and "_target_" not in value and isinstance(node.get(key), DictConfig):
            set_knobs(node[key], value, f"{method}'s {key}")
        else:
            node[key] = value


def method_in(node: DictConfig | ListConfig, key: str, without: Sequence[str] = ()) -> str:
    """What a method has brought to `node` already, "KEY is NAME (FILE)" for the first such thing, "" for a plain host.

    key: of the node in its config. without: of its keys, not looked into.
    """
    parts = sorted(node, key=lambda k: k != "_target_") if isinstance(node, DictConfig) else range(len(node))
    for part in parts:
        if part in without or OmegaConf.is_interpolation(node, part) or OmegaConf.is_missing(node, part):
            continue
        value = target_of(node) if part == "_target_" else node[part]
        where = key if part == "_target_" else f"{key}.{part}"
        module = getattr(value, "__module__", "")
        if OmegaConf.is_config(value):
            if found := method_in(value, where):
                return found
        elif module.startswith(OF_METHODS):
            return f"{where} is {getattr(value, '__name__', value)} ({module.replace('.', '/')}.py)"
    return ""


# ---------------------------------------------------------------- backbones
def bottom_up_of(model: DictConfig) -> DictConfig:
    """The backbone below the feature pyramid, or the backbone itself where there is none."""
    return model.backbone.get("bottom_up", model.backbone)


def built(node: DictConfig) -> nn.Module:
    """The module that a node makes, without memory for its weights."""
    with torch.device("meta"):
        return instantiate(node)


def narrowness(backbone: nn.Module) -> int:
    """How many times narrower than the papers' the backbone is: 1, 2, 4, ...; 1 for other than ResNets and FishNets."""
    maps = _maps(backbone) if isinstance(backbone, ResNet | FishNet) else {}
    if isinstance(backbone, FishNet):
        times = FISHNET_WIDTH / max(shape.channels for shape in maps.values())
    else:
        times = RES2_CHANNELS / maps["res2"].channels if "res2" in maps else 1
    return 2 ** max(0, round(log2(times)))


def trained_norm(backbone: DictConfig, default: str) -> str:
    """The norm of a new backbone in the place of a node's: its own, SyncBN for a frozen one."""
    norm = backbone.get("norm") or backbone.get("stem", {}).get("norm") or default
    return "SyncBN" if norm == "FrozenBN" else norm


def _maps(backbone: nn.Module) -> dict[str, ShapeSpec]:
    """Every map that the backbone could give by name, by stride."""
    channels, strides = backbone._out_feature_channels, backbone._out_feature_strides
    return {k: ShapeSpec(channels=channels[k], stride=strides[k]) for k in channels if k not in ("final", "linear")}


def require_resnet(model: DictConfig, method: str) -> ResNet:
    """The host's ResNet, see `built`. UserError: another backbone."""
    backbone = built(bottom_up_of(model))
    if not isinstance(backbone, ResNet):
        kind = type(backbone).__name__
        why = f": {NO_RESNET[kind]}" if kind in NO_RESNET else ""
        raise UserError(f"{method} stands in a ResNet, and the backbone is {kind}{why}. Leave one of the two out.")
    return backbone


def add_change(model: DictConfig, name: str, change: DictConfig, method: str, resnet: ResNet) -> None:
    """Let the host's ResNet be changed by a node of a `ResNetChange`, under the key `name` of its own node.

    resnet: of `require_resnet`; the change is tried on it. UserError: it has the change already, or this does not fit.
    """
    node = bottom_up_of(model)
    if isinstance(node.get(name), DictConfig) and target_of(node[name]) is target_of(change):
        raise UserError(f"The model has {method} already.")
    try:
        with torch.device("meta"):
            instantiate(change).change(resnet)
    except ValueError as e:
        raise UserError(f"{method} does not fit into this host: {str(e).rstrip('.')}.") from e
    if target_of(node) is not changed_resnet:
        node.base = target_of(node)
        node._target_ = changed_resnet
    node[name] = change


# ---------------------------------------------------------------- pyramids
def require_fpn(model: DictConfig, method: str) -> DictConfig:
    """The node of the host's feature pyramid. UserError: it has none."""
    target = target_of(model.backbone)
    if not (isinstance(target, type) and issubclass(target, FPN)):
        raise UserError(
            f"{method} needs a host with a feature pyramid (FPN), and this one's backbone is {target.__name__}."
        )
    return model.backbone


def channels_of(backbone: DictConfig) -> int:
    """Of every level of the backbone's node: its own word, or what it has built."""
    return backbone.get("out_channels") or next(iter(built(backbone).output_shape().values())).channels


def replace_bottom_up(model: DictConfig, node: DictConfig, names: Sequence[str], method: str) -> None:
    """Put another backbone below the host's pyramid. names: of its maps of strides 4, 8, 16 and 32.

    UserError: there is no pyramid; a method stands in the backbone that would go.
    """
    fpn = require_fpn(model, method)
    if found := method_in(fpn.bottom_up, "model.backbone.bottom_up"):
        raise UserError(
            f"{method} replaces the backbone, and {found}: begin with a config without it, or leave {method} out."
        )
    strides = {k: shape.stride for k, shape in _maps(built(fpn.bottom_up)).items()}
    new_name = {old: names[int(log2(stride)) - 2] for old, stride in strides.items() if old in fpn.in_features}
    in_features = [new_name[old] for old in fpn.in_features]
    node.out_features = in_features
    interpolated = OmegaConf.is_interpolation(fpn, "in_features")
    fpn.bottom_up = node
    if not interpolated:
        fpn.in_features = in_features
    top = fpn.get("top_block")
    source = top.get("in_feature", RES5) if top is not None and "in_channels" in top else None
    if source in new_name:
        shape = _maps(built(node))[new_name[source]]
        top.update(in_feature=new_name[source], in_channels=shape.channels)


def dense_pyramid(model: DictConfig, method: str) -> DictConfig:
    """The host's backbone as a dense detector has it: an R-CNN's gets the levels P3 to P7 in place of P2 to P6."""
    fpn = require_fpn(model, method)
    if is_dense(model):
        return fpn
    maps = _maps(built(fpn.bottom_up))
    fpn.bottom_up.out_features = fpn.in_features = [name for name in fpn.in_features if maps[name].stride > 4]
    last = fpn.in_features[-1]
    fpn.top_block = L(LastLevelP6P7)(in_channels=maps[last].channels, out_channels="${..out_channels}")
    if last != RES5:
        fpn.top_block.in_feature = last
    return fpn


def dense_host(model: DictConfig, method: str) -> dict[str, Any]:
    """What a dense detector of another kind takes over from its host: backbone, levels, classes, pixels.

    UserError: LabelEnc is around it, it has no pyramid, or a method stands in the heads that would go.
    """
    target = target_of(model)
    if "label_enc" in model:
        raise UserError(
            f"LabelEnc is around this model already, and {method} changes what it is around: begin with the plain host "
            f"and apply both; combine(model, ...) finds the order."
        )
    if target.__name__ == method:
        raise UserError(f"The model has {method} already.")
    if not is_dense(model):
        require_roi_heads(model, method)
        if issubclass(target, PaddingMaskRCNN):
            refuse_mask_padding(method)
    if found := method_in(model, "model", without=("backbone",)):
        raise UserError(
            f"{method} replaces the heads, and {found}: begin with a config without it, or leave {method} out."
        )
    backbone = dense_pyramid(model, method)
    return {
        "backbone": backbone,
        "head_in_features": model.get("head_in_features", DENSE_LEVELS),
        "num_classes": (model if is_dense(model) else model.roi_heads).num_classes,
        "pixel_mean": model.pixel_mean,
        "pixel_std": model.pixel_std,
    }


# ---------------------------------------------------------------- heads
def is_dense(model: DictConfig) -> bool:
    target = target_of(model)
    return isinstance(target, type) and issubclass(target, DenseDetector)


def require_roi_heads(model: DictConfig, method: str) -> DictConfig:
    """The node of the host's RoI heads. UserError: a dense detector, a classifier."""
    if "roi_heads" not in model:
        raise UserError(
            f"{method} stands in the RoI heads of an R-CNN, and {target_of(model).__name__} has none: it is a "
            f"{'dense detector' if is_dense(model) else 'classifier'}."
        )
    return model.roi_heads


def refuse_mask_padding(host: str) -> NoReturn:
    """UserError: `host`, a class by name, cannot tell DEPLA what is padding."""
    raise UserError(
        f"DEPLA's mask_padding needs a host that PaddingMaskRCNN can replace, a plain R-CNN, and this one is {host}: "
        f"leave mask_padding out."
    )


def shares_heads(model: DictConfig) -> bool:
    """Whether LabelEnc's step 1 runs the heads on the maps of images and on those of its encoder."""
    return "label_enc" in model and model.label_enc.mode == "step1"


def smallest_anchor(model: DictConfig) -> float:
    """Side in pixels of the host's smallest anchor; COCO's where the host does not say."""
    generator = model.get("proposal_generator", model).get("anchor_generator", {})
    sizes = generator.get("sizes")
    return float(min(min(level) for level in sizes)) if sizes else float(COCO_ANCHOR)
