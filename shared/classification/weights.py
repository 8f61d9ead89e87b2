"""Where a file's backbone belongs in a model: classifiers' checkpoints, torchvision's ResNets and its MobileNetV2.

Names are changed by prefix alone, so that any backbone finds its place in a detector that has the same one.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from shared.classification.model import ImageClassifier

logger = logging.getLogger(__name__)

CLASSIFIER, TORCHVISION, MOBILENET = "a classifier", "a torchvision ResNet", "a torchvision MobileNetV2"
BACKBONE, HEAD = "backbone.", "fc."  # of ImageClassifier; torchvision's head has the same name
_COUNTER = "num_batches_tracked"  # batch norm's; frozen batch norm has none
_TORCHVISION_RENAMES = (  # (regular expression, replacement), the first that matches
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
)


_TORCHVISION_NAME = re.compile(r"(conv1|bn1|fc|layer\d\.\d+\.(conv\d|bn\d|downsample\.[01]))\.\w+")
_MOBILENET_NAME = re.compile(r"(features\.\d+\.(conv\.)?\d+(\.\d+)?|classifier\.1)\.\w+")
_MOBILENET_HEAD = ("features.18.", "classifier.")  # what shared.modeling.mobilenet leaves out


@dataclass(frozen=True)
class BackboneWeights:
    """A file's weights under a model's names.

    Attributes: source, CLASSIFIER, TORCHVISION or MOBILENET; weights, {name in the model: value}; prefix, where the
    backbone lies in the model, "backbone.bottom_up." for example; unused, what the file holds besides, where
    the model is no classifier.
    """

    source: str
    weights: dict[str, Any]
    prefix: str
    unused: list[str]


def torchvision_to_detectron2(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Names of torchvision's ResNets (`conv1`, `layer1.0.bn1`, ...) to Detectron2's; `fc.*` stays.

    The ResNet must have `stride_in_1x1=False`; the weights expect RGB in torchvision's normalisation.
    """
    converted = {}
    for name, value in state_dict.items():
        for pattern, new in _TORCHVISION_RENAMES:
            name, count = re.subn(pattern, new, name)
            if count:
                break
        converted[name] = value
    return converted


def fit_backbone(state_dict: Mapping[str, Any], model: nn.Module) -> BackboneWeights | None:
    """The weights of a classifier, or of torchvision's, under `model`'s names; None for any other file.

    The backbone goes to the `Backbone` of the model that shares most names with it, the outermost of equals: a
    detector's FPN has one inside.
    """
    source, body, head = _split(state_dict)
    if source is None:
        return None
    ours = model.state_dict().keys()
    prefixes = [f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, Backbone)]
    shared = {prefix: sum(prefix + name in ours for name in body) for prefix in prefixes}
    prefix = max(shared, key=shared.get, default="")
    if not shared.get(prefix):
        return None
    weights = {prefix + k: v for k, v in body.items() if not (k.endswith(_COUNTER) and prefix + k not in ours)}
    unused = [] if isinstance(model, ImageClassifier) else list(head)
    weights.update({k: v for k, v in head.items() if k not in unused})
    if source == TORCHVISION:
        _check_strides(model.get_submodule(prefix.rstrip(".")))
    return BackboneWeights(source, weights, prefix, unused)


def _split(state_dict: Mapping[str, Any]) -> tuple[str | None, dict, dict]:
    """(source, backbone without its prefix, head); source None for a file that is neither."""
    if "layer1.0.conv1.weight" in state_dict and all(map(_TORCHVISION_NAME.fullmatch, state_dict)):
        renamed = torchvision_to_detectron2(state_dict)
        head = {k: v for k, v in renamed.items() if k.startswith(HEAD)}
        return TORCHVISION, {k: v for k, v in renamed.items() if k not in head}, head
    if "features.1.conv.0.0.weight" in state_dict and all(map(_MOBILENET_NAME.fullmatch, state_dict)):
        head = {k: v for k, v in state_dict.items() if k.startswith(_MOBILENET_HEAD)}
        return MOBILENET, {k: v for k, v in state_dict.items() if k not in head}, head
    head = {k: v for k, v in state_dict.items() if not k.startswith(BACKBONE)}  # and what a subclass adds
    if {HEAD + "weight", HEAD + "bias"} <= head.keys() < state_dict.keys():
        return CLASSIFIER, {k.removeprefix(BACKBONE): v for k, v in state_dict.items() if k not in head}, head
    return None, {}, {}


def _check_strides(backbone: nn.Module) -> None:
    for name, module in backbone.named_modules():
        if isinstance(module, BottleneckBlock) and tuple(module.conv1.stride) != (1, 1):
            logger.warning(
                "torchvision's ResNets stride in the 3x3 convolution, %s in the 1x1: set stride_in_1x1=False "
                "(MODEL.RESNETS.STRIDE_IN_1X1), or the features are wrong.",
                name,
            )
            return
