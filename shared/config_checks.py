"""A LazyConfig before it is built: each call can be made, each reference leads somewhere."""

import contextlib
import inspect
import operator
import re
import sys
from collections.abc import Iterator
from types import FunctionType

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import locate
from shared.errors import CommonError, UserError, nearest

PLAIN = (bool, int, float, str, bytes, list, tuple, dict, ShapeSpec)  # ShapeSpec has a tag of its own
SUPPLIED = {"optimizer.params.model"}  # arguments that train_net.py adds


@contextlib.contextmanager
def named_errors_of(key: str) -> Iterator[None]:
    """While what `key` describes is built: a constructor's ValueError, AssertionError or KeyError (a value out of
    range, an unknown name), or the lack of an argument, is the config's fault, and becomes a UserError."""
    try:
        yield
    except (ValueError, AssertionError, KeyError, TypeError) as e:
        text = " ".join(str(e).split())
        if isinstance(e, TypeError) and not re.search(r"missing \d+ required|unexpected keyword argument", text):
            raise
        raise CommonError(f"Config key {key} cannot be built with its values: {type(e).__name__}: {text[:400]}") from e


def check_lazy_config(cfg: DictConfig, file: str) -> None:
    """UserError names the key of a `_target_` that cannot be called, of an argument that it lacks or
    does not know, or of a reference to nothing."""
    for key, node in _nodes(cfg):
        if node._is_interpolation():
            _check_reference(node, key, file)
        elif isinstance(node, DictConfig) and "_target_" in node:
            _check_call(node, key, file)


def _nodes(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple]:
    """(dotted key, node) of everything below, interpolations not followed."""
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        yield f"{prefix}{key}", child
        if OmegaConf.is_config(child):
            yield from _nodes(child, f"{prefix}{key}.")


def _check_reference(node, key: str, file: str) -> None:
    try:
        node._dereference_node()
    except InterpolationToMissingValueError:
        pass  # left to the user, who is told of the value itself
    except (OmegaConfBaseException, RecursionError) as e:
        problem = "leads back to itself" if isinstance(e, RecursionError) else " ".join(str(e).split())
        raise UserError(f"Config file {file!r}: reference {key}={node._value()} cannot be resolved: {problem}") from e


def _check_call(node: DictConfig, key: str, file: str) -> None:
    target = node["_target_"]
    where = f"Config file {file!r}: {key}._target_ {target if isinstance(target, str) else ''}".rstrip()
    if isinstance(target, str):
        try:
            target = locate(target)
        except Exception as e:  # whatever an import raises
            raise UserError(f"{where} cannot be found: {' '.join(str(e).split())}") from e
    if not callable(target):
        raise UserError(f"{where} is no class or function but {target!r}.")
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of C code
        return
    kinds = {p.kind for p in parameters.values()}
    given = [k for k in node if k != "_target_"]
    name = getattr(target, "__qualname__", target)
    for argument in given:
        if argument not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            hint = nearest(argument, parameters) or "."
            raise UserError(f"Config file {file!r}: {key}.{argument} is no argument of {name}{hint}")
    for argument, p in parameters.items():
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if needed and argument not in given and f"{key}.{argument}" not in SUPPLIED:
            raise UserError(f"Config file {file!r}: {name} needs {key}.{argument}, which the config does not give.")


def check_can_be_saved(cfg: DictConfig) -> None:
    """UserError names the key of what a .yaml, such as the config.yaml of a run, cannot hold."""
    for key, node in _nodes(cfg):
        value = None if OmegaConf.is_config(node) or node._is_interpolation() else node._value()
        if isinstance(value, type) or inspect.isfunction(value):
            if not _has_a_name(value):
                raise UserError(
                    f"Config key {key} is {value.__qualname__}, which a run's config.yaml cannot name: a lambda, or "
                    f"defined in the config or in a function; put it into a module."
                )
        elif not (value is None or callable(value) or isinstance(value, PLAIN)):
            raise UserError(
                f"Config key {key} is an object of {type(value).__name__}, which a run's config.yaml cannot hold: "
                f"write the call that makes it, L({type(value).__name__})(...)."
            )


def _has_a_name(value: type | FunctionType) -> bool:
    """Whether importing its module and taking its name leads to it."""
    try:
        return operator.attrgetter(value.__qualname__)(sys.modules[value.__module__]) is value
    except (AttributeError, KeyError):
        return False
