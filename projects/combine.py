"""Every method of the collection by name, and their combinations.

    model = combine(model, "msfm", "depla_fpn", "internet", msfm={"scales": [0.5, 1.0, 2.0]})

in a LazyConfig, or `train_net.py --config-file HOST.py --with msfm depla_fpn internet`. `python -m projects.combine`
lists the names. A method is a function of the host, `with_<method>(model, **knobs)` in its project's combine.py.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from detectron2.config import CfgNode
from shared.errors import UserError, nearest

from .DEPLA.combine import with_depla, with_depla_fishnet, with_depla_fpn, with_fishnet, with_se_resnet
from .Detectors.combine import with_dynamic, with_grid, with_reppoints
from .InterNet.combine import with_internet
from .LabelEnc.combine import with_labelenc
from .LIP.combine import with_lip, with_lip_densenet
from .MSFM.combine import with_msfm
from .MuSu.combine import with_musu

BACKBONE = "backbone"


@dataclass(frozen=True)
class Method:
    """apply: (model, **knobs) -> model. replaces: the part of the host that it takes the place of or changes; where
    `alone`, no two methods can replace the same."""

    apply: Callable[..., DictConfig]
    replaces: str
    what: str
    alone: bool = False


def _internet_ot(model: DictConfig, **knobs: Any) -> DictConfig:
    return with_internet(model, ot=True, **knobs)


# In the order in which they are applied: a backbone before what stands in it, heads before what is around them.
METHODS: dict[str, Method] = {
    "fishnet": Method(with_fishnet, BACKBONE, "FishNet-150", alone=True),
    "depla_fishnet": Method(with_depla_fishnet, BACKBONE, "FishNet-150 with DEPLA in its UR and DR blocks", alone=True),
    "lip_densenet": Method(with_lip_densenet, BACKBONE, "LIP-DenseNet-121", alone=True),
    "lip": Method(with_lip, "pooling and strides of the ResNet", "LIP at the seven sites of LIP-ResNet"),
    "se_resnet": Method(with_se_resnet, "blocks of the ResNet", "squeeze-and-excitation in every bottleneck"),
    "msfm": Method(with_msfm, "blocks of the ResNet", "multi-scale fusion behind conv2 and conv3, res3 to res5"),
    "depla": Method(with_depla, "sums of the backbone", "DEPLA in res4 of a ResNet, or in a FishNet"),
    "depla_fpn": Method(with_depla_fpn, "pyramid", "DEPLA between the levels of the FPN"),
    "musu": Method(with_musu, "dense head", "MuSu's head, assignment and losses", alone=True),
    "reppoints": Method(with_reppoints, "dense head", "RepPoints' head, assignment and losses", alone=True),
    "dynamic": Method(with_dynamic, "RoI heads", "Dynamic R-CNN's moving threshold and loss"),
    "grid": Method(with_grid, "RoI heads", "Grid R-CNN's boxes from grid points"),
    "internet": Method(with_internet, "RoI features", "InterNet: large objects teach small ones", alone=True),
    "internet_ot": Method(_internet_ot, "RoI features", "InterNet with optimal transport between levels", alone=True),
    "labelenc": Method(with_labelenc, "meta-architecture", "LabelEnc's step 1 around the detector"),
}


def combine(model: DictConfig, *names: str, **knobs: dict[str, Any]) -> DictConfig:
    """The host with every named method applied; the host is not changed, and the order of names does not matter.

    Args:
        model: a LazyConfig's model node. names: of METHODS.
        knobs: by a method's name, what its function takes: `lip={"kernel_after": 3}`.
    Raises:
        UserError: an unknown name or knob, one name twice, methods or a host that do not go together.
    """
    for name in (*names, *knobs):
        if name not in METHODS:
            raise UserError(
                f"There is no method {name!r}{nearest(name, METHODS) or ': there are ' + ', '.join(METHODS) + '.'}"
            )
    for name in knobs:
        if name not in names:
            raise UserError(f"Knobs for {name} are given, but {name} is not among the methods: {', '.join(names)}.")
    chosen = [name for name in METHODS if name in names]
    if len(chosen) != len(names):
        twice = next(name for name in chosen if names.count(name) > 1)
        raise UserError(f"Method {twice} is named twice: once is enough.")
    _refuse_two_of_a_kind(chosen)
    for name in chosen:
        model = METHODS[name].apply(model, **knobs.get(name, {}))
    return model


def _refuse_two_of_a_kind(chosen: Sequence[str]) -> None:
    places: dict[str, str] = {}
    for name in chosen:
        method = METHODS[name]
        if method.alone and method.replaces in places:
            first = places[method.replaces]
            raise UserError(f"{first} and {name} both replace the {method.replaces}: choose one of the two.")
        places[method.replaces] = name


def combine_config(cfg: DictConfig | CfgNode, names: Sequence[str], file: str) -> DictConfig | CfgNode:
    """A whole config with the methods, none or more, in its model. file: its name, for messages.

    A method that replaces the backbone empties train.init_checkpoint, with a warning: its weights are those of the
    backbone that goes. Overrides come later, and can name others.
    UserError: see `combine`; methods for a CfgNode.
    """
    if not names:
        return cfg
    if isinstance(cfg, CfgNode):
        raise UserError(
            f"--with combines methods in LazyConfigs, and {file} has Detectron2's YAML keys: take a .py config, or the "
            f"config.yaml that a run of one has saved."
        )
    cfg.model = combine(cfg.model, *names)
    replacing = [name for name in names if METHODS[name].replaces == BACKBONE]
    weights = cfg.train.get("init_checkpoint")
    if replacing and weights:
        cfg.train.init_checkpoint = ""
        logging.getLogger(__name__).warning(
            "train.init_checkpoint=%s of %s is left out, as %s replaces the backbone that it is for: all weights start "
            "at random unless you add train.init_checkpoint=FILE.",
            weights,
            file,
            replacing[0],
        )
    return cfg


def describe() -> str:
    """The methods, one a line."""
    rows = [(name, method.replaces, method.what) for name, method in METHODS.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {replaces:<{widths[1]}}  {what}" for name, replaces, what in rows)


if __name__ == "__main__":
    print(describe())
