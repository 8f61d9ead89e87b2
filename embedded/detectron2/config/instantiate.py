"""From a lazy config to the objects that it describes."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.utils.registry import _convert_target_to_string, locate


def dump_dataclass(obj: Any) -> dict[str, Any]:
    """A dataclass object as a dict of `_target_` and fields, nested ones and lists included."""
    assert dataclasses.is_dataclass(obj) and not isinstance(obj, type), f"{obj!r} is no object of a dataclass."

    def dump(value):
        if isinstance(value, (list, tuple)):
            return [dump(x) for x in value]
        return dump_dataclass(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value

    fields = {f.name: dump(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    return {"_target_": _convert_target_to_string(type(obj)), **fields}


def instantiate(cfg: Any) -> Any:
    """Call what `_target_` names, arguments first, in key order. Anything without `_target_` is returned as it is."""
    if isinstance(cfg, (list, ListConfig)):
        items = [instantiate(x) for x in cfg]
        return items if isinstance(cfg, list) else ListConfig(items, flags={"allow_objects": True})
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg
    kwargs = {k: instantiate(v) for k, v in cfg.items()}
    name = kwargs.pop("_target_")
    target = locate(name) if isinstance(name, str) else name
    assert callable(target), f"_target_ {name!r} is not callable."
    try:
        return target(**kwargs)
    except TypeError:
        logging.getLogger(__name__).error(f"Error when instantiating {name}!")
        raise
