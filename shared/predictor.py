"""DefaultPredictor for LazyConfigs.

cfg = predictor_cfg(load_config("config.yaml"), "model_final.pth", device="cpu")
outputs = DefaultPredictor(cfg)(image)  # BGR, HWC, uint8
"""

import copy
import zlib
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from shared.config import config_text, get_collection_cfg
from shared.errors import UserError
from shared.trust import read_lazy_yaml


@META_ARCH_REGISTRY.register()
def LazyConfigModel(cfg: CfgNode):
    """Meta-architecture that instantiates a LazyConfig's model from its text, cfg.MODEL.LAZY.YAML."""
    if not cfg.MODEL.LAZY.YAML:
        raise UserError("MODEL.LAZY.YAML is empty: make the cfg with shared.predictor.predictor_cfg.")
    text = cfg.MODEL.LAZY.YAML
    if text in _MADE_HERE:
        return instantiate(_MADE_HERE[text].model).to(cfg.MODEL.DEVICE)
    content = read_lazy_yaml(text, "MODEL.LAZY.YAML")
    return instantiate(OmegaConf.create(content, flags={"allow_objects": True}).model).to(cfg.MODEL.DEVICE)


# By its text, the model's config that `predictor_cfg` was given: what a .py config names needs no further trust.
_MADE_HERE: dict[str, DictConfig] = {}


def predictor_cfg(
    lazy: DictConfig, weights: str = "", device: str | None = None, class_names: Sequence[str] | None = None
) -> CfgNode:
    """The CfgNode that makes `DefaultPredictor` run a LazyConfig's model.

    Args:
        lazy: a whole config; `model`, `train.device` and the test mapper's resizing are used.
        weights: a checkpoint; default `train.init_checkpoint`.
        class_names: default `train.class_names`, which train_net.py writes into the run's
            config.yaml, else those of a test set that is registered. They become the metadata of
            DATASETS.TEST[0], where DefaultPredictor looks.
    """
    if "augmentations" not in lazy.dataloader.test.mapper:
        raise UserError(
            "DefaultPredictor and tools/predict.py are for detectors: a classifier is run by train_net.py --eval-only."
        )
    cfg = get_collection_cfg()
    cfg.MODEL.META_ARCHITECTURE = "LazyConfigModel"
    cfg.MODEL.WEIGHTS = weights or lazy.train.init_checkpoint
    cfg.MODEL.DEVICE = device or lazy.train.device
    lazy = copy.deepcopy(lazy)
    OmegaConf.resolve(lazy.model)  # the model alone must not refer to what is left behind
    model = OmegaConf.create({"model": lazy.model}, flags={"allow_objects": True})
    cfg.MODEL.LAZY.YAML = config_text(model)
    _MADE_HERE[cfg.MODEL.LAZY.YAML] = model
    cfg.INPUT.FORMAT = lazy_input_format(lazy)
    resize = lazy.dataloader.test.mapper.augmentations[0]
    if "short_edge_length" not in resize:
        raise UserError(
            "dataloader.test.mapper.augmentations must begin with ResizeShortestEdge: DefaultPredictor "
            "knows no other resizing."
        )
    cfg.INPUT.MIN_SIZE_TEST = resize.short_edge_length
    cfg.INPUT.MAX_SIZE_TEST = resize.max_size
    names = list(class_names or lazy_class_names(lazy))
    cfg.DATASETS.CLASS_NAMES = names
    cfg.DATASETS.TEST = (register_class_names(names),) if names else ()
    return cfg


def lazy_input_format(lazy: DictConfig) -> str:
    """RGB or BGR: the channel order of the images that a LazyConfig's model reads."""
    return lazy.model.get("input_format") or lazy.dataloader.test.mapper.image_format


def lazy_class_names(lazy: DictConfig) -> list[str]:
    """Those that a run has saved in its config.yaml, else its test set's where that is registered; [] if unknown."""
    names = lazy.dataloader.test.dataset.get("names")
    known = MetadataCatalog.get(names).get("thing_classes", []) if isinstance(names, str) else []
    return list(lazy.train.get("class_names") or known)


def register_class_names(names: Sequence[str]) -> str:
    """A metadata entry that holds these class names and nothing else; returns its name."""
    names = list(names)
    key = f"classes_{zlib.crc32(repr(names).encode()):08x}"
    MetadataCatalog.get(key).set(thing_classes=names)
    return key
