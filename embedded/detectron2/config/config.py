"""The YAML config, and constructors that can be called with one."""

import functools
import inspect
from collections.abc import Callable

from fvcore.common.config import CfgNode as _CfgNode
from omegaconf import DictConfig

from detectron2.utils.file_io import PathManager


class CfgNode(_CfgNode):
    """fvcore's CfgNode that opens files through our PathManager and checks VERSION."""

    @classmethod
    def _open_cfg(cls, filename):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file and its `_BASE_` chain. KeyError for a key that is not in self."""
        assert PathManager.isfile(cfg_filename), f"Config file {cfg_filename!r} does not exist."
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        if (version := loaded.get("VERSION", 2)) != 2:
            raise ValueError(f"{cfg_filename} has VERSION {version}; only 2 can be read. Rewrite its keys.")
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
    `@configurable(from_config=f)`. It returns the keyword arguments of the real call; those of the caller that it does
    not name win over them."""
    if init_func is None:
        return functools.partial(configurable, from_config=from_config)
    if from_config is None:
        assert inspect.isfunction(init_func) and init_func.__name__ == "__init__", (
            "@configurable without from_config belongs on __init__; a function needs @configurable(from_config=...)."
        )

        @functools.wraps(init_func)
        def wrapped(self, *args, **kwargs):
            cls = type(self)
            if not hasattr(cls, "from_config"):
                raise AttributeError(f"{cls.__name__} is @configurable: give it a classmethod 'from_config'.")
            if not inspect.ismethod(cls.from_config):
                raise TypeError(f"{cls.__name__}.from_config has to be a classmethod.")
            args, kwargs = _resolve_cfg(cls.from_config, args, kwargs)
            init_func(self, *args, **kwargs)
    else:
        assert inspect.isfunction(from_config), f"from_config has to be a function, got {from_config!r}."

        @functools.wraps(init_func)
        def wrapped(*args, **kwargs):
            args, kwargs = _resolve_cfg(from_config, args, kwargs)
            return init_func(*args, **kwargs)

        wrapped.from_config = from_config
    return wrapped


def _resolve_cfg(from_config: Callable, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of the real call: those given, or, if a cfg is among them, what `from_config` makes of them."""
    if not isinstance(args[0] if args else kwargs.get("cfg"), (_CfgNode, DictConfig)):
        return args, kwargs
    params = inspect.signature(from_config).parameters
    if next(iter(params), None) != "cfg":
        raise TypeError(f"The first parameter of {from_config.__qualname__} has to be 'cfg'.")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in params.values()):
        return (), from_config(*args, **kwargs)
    others = {k: kwargs.pop(k) for k in list(kwargs) if k not in params}
    return (), {**from_config(*args, **kwargs), **others}
