"""Configs written in Python: calls that are made later, files that import each other."""

import builtins
import dataclasses
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from itertools import accumulate
from types import ModuleType
from typing import Any

import cloudpickle
import yaml
from omegaconf import DictConfig, OmegaConf, SCMode

from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string

_PACKAGE = "detectron2._lazy_config"  # what config files take for their package


class LazyCall:
    """`LazyCall(f)(a=1)` is a config of the call `f(a=1)`, which `instantiate` makes."""

    def __init__(self, target: Callable | str | Mapping):
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall takes a callable, its import string or a config, got {target!r}.")
        self._target = target

    def __call__(self, **kwargs) -> DictConfig:
        target = self._target
        if isinstance(target, type) and dataclasses.is_dataclass(target):  # omegaconf would make a config of the type
            target = _convert_target_to_string(target)
        return _cast_to_config({**kwargs, "_target_": target})


def _cast_to_config(obj: Any) -> Any:
    return DictConfig(obj, flags={"allow_objects": True}) if isinstance(obj, dict) else obj


def _run_file(filename: str) -> ModuleType:
    """Execute a config file as a module of its own. SyntaxError naming the file."""
    with PathManager.open(filename, "r") as f:
        code = compile(f.read(), filename, "exec", dont_inherit=True)
    module = ModuleType(f"{_PACKAGE}.{os.path.splitext(os.path.basename(filename))[0]}")
    module.__file__, module.__package__ = filename, _PACKAGE
    exec(code, module.__dict__)
    return module


def _find_relative_file(importer: str, name: str, level: int) -> str:
    """The file that `from <level dots><name> import ...` means in the file `importer`."""
    if not name:
        raise ImportError(f"In {importer}, a relative import of no file: write 'from {'.' * level}file import x'.")
    parents = [os.pardir] * (level - 1)
    path = os.path.normpath(os.path.join(os.path.dirname(importer), *parents, *name.split(".")))
    if not PathManager.isfile(path + ".py"):
        problem = "it is a directory, name a file in it" if PathManager.isdir(path) else "this file does not exist"
        raise ImportError(f"Cannot import from {path}.py, as {'.' * level}{name} in {importer}: {problem}.")
    return path + ".py"


@contextmanager
def _relative_imports_of_files():
    """Inside, relative imports of config files execute the file that they name, each time anew."""
    original = builtins.__import__

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 or globals.get("__package__") != _PACKAGE:
            return original(name, globals, locals, fromlist, level)
        module = _run_file(_find_relative_file(globals["__file__"], name, level))
        for key, value in list(vars(module).items()):
            if key in fromlist or ("*" in fromlist and not key.startswith("_")):
                setattr(module, key, _cast_to_config(value))
        return module

    builtins.__import__ = import_
    try:
        yield
    finally:
        builtins.__import__ = original


def _names_instead_of_targets(obj: Any) -> Any:
    """Plain containers, with every `_target_` that has a name (a functools.partial has none) as import string."""
    if isinstance(obj, list):
        return [_names_instead_of_targets(x) for x in obj]
    if isinstance(obj, dict):
        obj = {k: _names_instead_of_targets(v) for k, v in obj.items()}
        if hasattr(target := obj.get("_target_"), "__qualname__"):
            obj["_target_"] = _convert_target_to_string(target)
    return obj


def _to_lines(obj: Any, prefix: str) -> list[str]:
    """One `prefix.key = value` for each value that is not a dict of values itself."""
    if isinstance(obj, dict) and obj and "_target_" not in obj:
        return [line for k in sorted(obj) for line in _to_lines(obj[k], f"{prefix}{k}.")]
    return [f"{prefix.removesuffix('.')} = {_to_expression(obj)}"]


def _to_expression(obj: Any) -> str:
    if isinstance(obj, list):
        return "[" + ", ".join(map(_to_expression, obj)) + "]"
    if not isinstance(obj, dict):
        return _convert_target_to_string(obj) if hasattr(obj, "__qualname__") else repr(obj)
    items = {k: _to_expression(obj[k]) for k in sorted(obj) if k != "_target_"}
    if "_target_" not in obj:
        return "{" + ", ".join(f"{k!r}: {v}" for k, v in items.items()) + "}"
    target = obj["_target_"] if isinstance(obj["_target_"], str) else _to_expression(obj["_target_"])
    return f"{target}({', '.join(f'{k}={v}' for k, v in items.items())})"


class LazyConfig:
    """Load, save and change configs; all methods are static."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """`load` of a path relative to the file of the caller."""
        caller = inspect.currentframe().f_back.f_code.co_filename
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """A .py or .yaml config: the value of one key, a tuple for several, or all of it.
        All of a Python file: its public variables that are dicts or configs, as one config."""
        filename = os.fspath(filename).replace("/./", "/")
        ext = os.path.splitext(filename)[1]
        if ext == ".py":
            with _relative_imports_of_files():
                found = vars(_run_file(filename))
        elif ext in (".yaml", ".yml"):
            with PathManager.open(filename, "r") as f:
                found = OmegaConf.create(yaml.unsafe_load(f), flags={"allow_objects": True})
        else:
            raise ValueError(f"Config file {filename} has to end in .py, .yaml or .yml.")
        if isinstance(keys, str):
            return _cast_to_config(found[keys])
        if keys is not None:
            return tuple(_cast_to_config(found[k]) for k in keys)
        if ext != ".py":
            return found
        public = {k: _cast_to_config(v) for k, v in found.items() if not k.startswith("_")}
        return _cast_to_config({k: v for k, v in public.items() if OmegaConf.is_config(v)})

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write a config as YAML, callables as import strings.
        What YAML cannot hold (lambdas) is pickled to `filename + ".pkl"`; a failure of both is only logged."""
        logger = logging.getLogger(__name__)
        try:
            content = OmegaConf.to_container(cfg, structured_config_mode=SCMode.INSTANTIATE)  # unresolved
            content = _names_instead_of_targets(content)
            text = yaml.dump(content, default_flow_style=None, allow_unicode=True, width=9999)
            with PathManager.open(filename, "w") as f:
                f.write(text)
            yaml.unsafe_load(text)
        except Exception as e:
            logger.warning(f"{filename} cannot be written or read back ({e}): see {filename}.pkl.")
            try:
                pickled = cloudpickle.dumps(cfg)
                with PathManager.open(f"{filename}.pkl", "wb") as f:
                    f.write(pickled)
            except Exception as e:
                logger.error(f"The config cannot be pickled either: {e}")

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change `cfg` by overrides in hydra's grammar ("a.b=1"), new keys too unless it is a struct; returns it."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for override in OverridesParser.create().parse_overrides(overrides):
            key = override.key_or_group
            if override.is_delete():
                raise NotImplementedError(f"{override.input_line!r}: keys cannot be deleted, set them to null.")
            for prefix in accumulate(key.split(".")[:-1], "{}.{}".format):
                node = OmegaConf.select(cfg, prefix, default=None)
                if not (node is None or OmegaConf.is_config(node)):
                    raise KeyError(f"Cannot set {key}: {prefix} is {node!r}, not a config with keys.")
            OmegaConf.update(cfg, key, override.value(), merge=True)
        return cfg

    @staticmethod
    def to_py(cfg: Any, prefix: str = "cfg.") -> str:
        """The resolved config as Python-like text to read, one `cfg.a.b = value` per line."""
        import black

        text = "\n".join(_to_lines(OmegaConf.to_container(cfg, resolve=True), prefix))
        try:
            return black.format_str(text, mode=black.Mode())
        except black.InvalidInput:  # such as a key with a space
            return text
