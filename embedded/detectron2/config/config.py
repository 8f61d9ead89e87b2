"""The YAML config, and constructors that can be called with one."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode
from omegaconf import DictConfig

from detectron2.utils.file_io import PathManager

_VERSION = 2


class CfgNode(_CfgNode):
    """fvcore's CfgNode that opens files through our PathManager and checks VERSION."""

    @classmethod
    def _open_cfg(cls, filename):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file and its `_BASE_` chain. KeyError for a key that is not in self."""
        assert PathManager.isfile(cfg_filename), f"Config file {cfg_filename!r} does not exist."
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        version = loaded.get("VERSION", _VERSION)
        if version != _VERSION:
            raise ValueError(
                f"{cfg_filename} has VERSION {version}; only {_VERSION} can be read. "
                f"Rewrite its keys for VERSION {_VERSION}."
            )
        self.merge_from_other_cfg(type(self)(loaded))


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make the one `global_cfg` object hold the content of `cfg`."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Let a constructor or a function also be called with a cfg.

    On `__init__`, the class has a classmethod `from_config(cls, cfg, ...)`; on a function, write
    `@configurable(from_config=f)`. It returns the keyword arguments of the real call. Keyword
    arguments of the caller that it does not name win over what it returns.
    """
    if init_func is None:
        return functools.partial(configurable, from_config=from_config)
    if from_config is None:
        return _configurable_init(init_func)
    return _configurable_function(init_func, from_config)


def _configurable_init(init_func: Callable) -> Callable:
    assert inspect.isfunction(init_func) and init_func.__name__ == "__init__", (
        "@configurable without from_config belongs on __init__; for a function, write @configurable(from_config=...)."
    )

    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        name = type(self).__name__
        if not hasattr(type(self), "from_config"):
            raise AttributeError(f"{name} is @configurable: give it a classmethod 'from_config'.")
        from_config = type(self).from_config
        if not inspect.ismethod(from_config):
            raise TypeError(f"{name}.from_config has to be a classmethod.")
        if _called_with_cfg(args, kwargs):
            init_func(self, **_args_from_config(from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(func: Callable, from_config: Callable) -> Callable:
    assert inspect.isfunction(from_config), f"from_config has to be a function, got {from_config!r}."

    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        if _called_with_cfg(args, kwargs):
            return func(**_args_from_config(from_config, args, kwargs))
        return func(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _called_with_cfg(args: tuple, kwargs: dict) -> bool:
    cfg = args[0] if args else kwargs.get("cfg")
    return isinstance(cfg, (_CfgNode, DictConfig))


def _args_from_config(from_config: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    params = inspect.signature(from_config).parameters
    if next(iter(params), None) != "cfg":
        raise TypeError(f"The first parameter of {from_config.__qualname__} has to be 'cfg'.")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.kind in variadic for p in params.values()):
        return from_config(*args, **kwargs)
    held_back = {k: v for k, v in kwargs.items() if k not in params}
    named = {k: v for k, v in kwargs.items() if k in params}
    return {**from_config(*args, **named), **held_back}
