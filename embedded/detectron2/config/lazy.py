"""Configs written in Python: calls that are made later, files that import each other."""

import builtins
import dataclasses
import inspect
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

import cloudpickle
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import _convert_target_to_string

_PACKAGE = "detectron2._lazy_config_"  # config files are modules of packages of such names


class LazyCall:
    """`LazyCall(f)(a=1)` is a config of the call `f(a=1)`, which `instantiate` makes."""

    def __init__(self, target: Callable | str | Mapping):
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall takes a callable, its import string or a config, got {target!r}.")
        self._target = target

    def __call__(self, **kwargs) -> DictConfig:
        target = self._target
        if isinstance(target, type) and dataclasses.is_dataclass(target):
            # omegaconf would turn the type into a config
            target = _convert_target_to_string(target)
        return _dict_config({**kwargs, "_target_": target})


def _dict_config(content: Mapping) -> DictConfig:
    return DictConfig(content, flags={"allow_objects": True})


def _cast_to_config(obj: Any) -> Any:
    return _dict_config(obj) if isinstance(obj, dict) else obj


def _run_file(filename: str) -> ModuleType:
    """Execute a config file as a module of its own. SyntaxError naming the file."""
    with PathManager.open(filename, "r") as f:
        source = f.read()
    try:
        code = compile(source, filename, "exec", dont_inherit=True)
    except SyntaxError as e:
        raise SyntaxError(f"Config file {filename} has a syntax error: {e}") from e
    stem = os.path.splitext(os.path.basename(filename))[0]
    module = module_from_spec(ModuleSpec(f"{_PACKAGE}{uuid.uuid4().hex[:8]}.{stem}", None))
    module.__file__ = filename
    exec(code, module.__dict__)
    return module


def _find_relative_file(importer: str, name: str, level: int) -> str:
    """The file that `from <level dots><name> import ...` means in the file `importer`."""
    dots = "." * level
    if not name:
        raise ImportError(
            f"'from {dots} import x' is no relative import that config files support "
            f"(in {importer}): write 'from {dots}file import x'."
        )
    parents = [os.pardir] * (level - 1)
    path = os.path.join(os.path.dirname(importer), *parents, *name.split("."))
    path = os.path.normpath(path)
    if PathManager.isfile(path + ".py"):
        return path + ".py"
    if PathManager.isdir(path):
        raise ImportError(
            f"Cannot import from {path}, imported as {dots}{name} in {importer}: it is a directory. Name a file in it."
        )
    raise ImportError(
        f"Cannot import from {path}.py, imported as {dots}{name} in {importer}: this file does not exist."
    )


@contextmanager
def _relative_imports_of_files():
    """Inside, relative imports of config files execute the file that they name, each time anew."""
    original = builtins.__import__

    def import_(name, globals=None, locals=None, fromlist=(), level=0):
        package = (globals or {}).get("__package__") or ""
        if level == 0 or not package.startswith(_PACKAGE):
            return original(name, globals, locals, fromlist, level)
        module = _run_file(_find_relative_file(globals["__file__"], name, level))
        everything = [k for k in vars(module) if not k.startswith("_")]
        for key in everything if "*" in fromlist else fromlist:
            if hasattr(module, key):  # where not, the import statement says so itself
                setattr(module, key, _cast_to_config(getattr(module, key)))
        return module

    builtins.__import__ = import_
    try:
        yield
    finally:
        builtins.__import__ = original


def _names_instead_of_targets(cfg: Any) -> None:
    """Replace every callable `_target_` below `cfg` by its import string, in place."""
    if not OmegaConf.is_config(cfg):
        return
    keys = range(len(cfg)) if isinstance(cfg, ListConfig) else list(cfg)
    for key in keys:
        if OmegaConf.is_interpolation(cfg, key) or OmegaConf.is_missing(cfg, key):
            continue
        value = cfg[key]
        if key == "_target_" and callable(value):
            with suppress(AttributeError):  # a functools.partial has no name
                cfg[key] = _convert_target_to_string(value)
        else:
            _names_instead_of_targets(value)


def _set(cfg: Any, key: str, value: Any) -> None:
    parts = key.split(".")
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n])
        node = OmegaConf.select(cfg, prefix, default=None)
        if node is None:
            break
        if not OmegaConf.is_config(node):
            raise KeyError(
                f"Cannot set {key}: {prefix} is {node!r} of type {type(node).__name__}, not a config with keys."
            )
    OmegaConf.update(cfg, key, value, merge=True)


def _to_lines(obj: Any, prefix: str) -> list[str]:
    """One `prefix.key = value` for each value that is not a dict of values itself."""
    if isinstance(obj, dict) and obj and "_target_" not in obj:
        return [line for k in sorted(obj) for line in _to_lines(obj[k], f"{prefix}{k}.")]
    return [f"{prefix.removesuffix('.')} = {_to_expression(obj)}"]


def _to_expression(obj: Any) -> str:
    if isinstance(obj, dict) and "_target_" in obj:
        kwargs = {k: v for k, v in obj.items() if k != "_target_"}
        arguments = ", ".join(f"{k}={_to_expression(kwargs[k])}" for k in sorted(kwargs))
        target = obj["_target_"]
        return f"{target if isinstance(target, str) else _to_expression(target)}({arguments})"
    if isinstance(obj, dict):
        return "{" + ", ".join(f"{k!r}: {_to_expression(obj[k])}" for k in sorted(obj)) + "}"
    if isinstance(obj, list):
        return "[" + ", ".join(_to_expression(x) for x in obj) + "]"
    return _convert_target_to_string(obj) if hasattr(obj, "__qualname__") else repr(obj)


class LazyConfig:
    """Load, save and change configs; all methods are static."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """`load` of a path relative to the file of the caller."""
        caller = inspect.currentframe().f_back.f_code.co_filename
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """A .py or .yaml config.

        keys: a name gives its value, a tuple of names a tuple of values. Without it: all public
        variables of a Python file that are dicts or configs, as one config.
        """
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
        if ext == ".py":
            kinds = (dict, DictConfig, ListConfig)
            found = {k: v for k, v in found.items() if isinstance(v, kinds) and not k.startswith("_")}
            return _dict_config({k: _cast_to_config(v) for k, v in found.items()})
        return found

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write a config as YAML, callables as import strings.

        What YAML cannot hold (lambdas) goes into a pickle, `filename + ".pkl"`, as well. A
        config that neither can hold is logged as an error: no reason to stop a run.
        """
        logger = logging.getLogger(__name__)
        try:
            cfg = deepcopy(cfg)
            _names_instead_of_targets(cfg)
            content = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
            text = yaml.dump(content, default_flow_style=None, allow_unicode=True, width=9999)
            with PathManager.open(filename, "w") as f:
                f.write(text)
            yaml.unsafe_load(text)
        except Exception as e:
            logger.warning(f"{filename} cannot be written or read back ({e}): see {filename}.pkl.")
            try:
                content = cloudpickle.dumps(cfg)
            except Exception as e:
                logger.error(f"The config cannot be pickled either: {e}")
            else:
                with PathManager.open(f"{filename}.pkl", "wb") as f:
                    f.write(content)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change `cfg` by overrides in hydra's grammar ("a.b=1"); returns it.

        New keys are accepted unless the caller sets omegaconf's struct flag.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_delete():
                raise NotImplementedError(
                    f"Override {override.input_line!r}: keys cannot be deleted, set them to null."
                )
            _set(cfg, override.key_or_group, override.value())
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
