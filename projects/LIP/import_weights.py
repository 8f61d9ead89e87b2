"""Names and shapes of the official LIP-ResNet checkpoints (github.com/sebgao/LIP) to ours.

They are plain state dicts in torchvision's layout with LIP's own parts: what is called `bn` inside a logit module is an
instance norm. They expect RGB images in torchvision's normalisation and the stride outside the 1x1 convolutions.
The official LIP-DenseNet has no importer here.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from shared.classification.weights import BACKBONE, HEAD, torchvision_to_detectron2

_BLOCK = r"^(layer\d\.\d+\.)"
_RENAMES = (  # (regular expression, replacement) of LIP's own parts, the first that matches; torchvision's follow
    (r"^maxpool\.logit\.conv\.", "stem.pool.logit."),
    (r"^maxpool\.logit\.bn\.", "stem.pool.logit.norm."),
    (_BLOCK + r"bottleneck_shared\.logit\.conv([12])\.", r"\1logit_trunk.conv\2."),
    (_BLOCK + r"bottleneck_shared\.logit\.bn([12])\.", r"\1logit_trunk.conv\2.norm."),
    (_BLOCK + r"conv2\.0\.postprocessing\.conv\.", r"\1main_pool.logit."),
    (_BLOCK + r"conv2\.0\.postprocessing\.bn\.", r"\1main_pool.logit.norm."),
    (_BLOCK + r"conv2\.1\.", r"\1conv2."),
    (_BLOCK + r"downsample\.lip\.postprocessing\.conv\.", r"\1shortcut_pool.logit."),
    (_BLOCK + r"downsample\.lip\.postprocessing\.bn\.", r"\1shortcut_pool.logit.norm."),
    (_BLOCK + r"downsample\.conv\.", r"\1downsample.0."),
    (_BLOCK + r"downsample\.bn\.", r"\1downsample.1."),
)
_SIGNS = ("maxpool.logit.conv.weight", "layer4.0.bottleneck_shared.logit.conv1.weight", "fc.weight")


def convert_lip_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official LIP-ResNet's state dict as that of `ImageClassifier` with a `lip_resnet` backbone (norm BN).

    Raises:
        ValueError: the file is no official LIP-ResNet, or holds a name that such a file does not have.
    """
    if missing := [key for key in _SIGNS if key not in state_dict]:
        raise ValueError(f"This is no official LIP-ResNet checkpoint: it has no entry {missing[0]!r}.")
    named = {}
    for key, value in state_dict.items():
        name = key
        for pattern, new in _RENAMES:
            name, count = re.subn(pattern, new, name)
            if count:
                break
        named[name] = value
    converted = {k if k.startswith(HEAD) else BACKBONE + k: v for k, v in torchvision_to_detectron2(named).items()}
    if unknown := [k for k in converted if not re.match(rf"{re.escape(BACKBONE)}(stem|res[2-5])\.|{HEAD}", k)]:
        raise ValueError(f"No official LIP-ResNet has an entry {unknown[0].removeprefix(BACKBONE)!r}.")
    return converted
