"""What a LazyConfig's .yaml may name.

Each `_target_` of a LazyConfig is imported and called. A .py config is code anyway; a .yaml, such as the config.yaml of
a run that came with a checkpoint, is read here: as plain values, with calls of `TRUSTED` alone. These neither run code
that their arguments name nor import what is not installed; what they are told to read, write or download, they do.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import yaml

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import locate
from shared.errors import UserError

VARIABLE = "DETECTION_TRUST"
# Modules, and single functions, by where they are defined. Before adding one: can its arguments, all of them text,
# numbers and other trusted callables, make it run a file or a string? load_proposals_into_dataset unpickles one.
TRUSTED = (
    "detectron2.data.build.build_detection_test_loader",
    "detectron2.data.build.build_detection_train_loader",
    "detectron2.data.build.get_detection_dataset_dicts",  # its proposal_files: see UNTRUSTED_ARGUMENTS
    "detectron2.data.dataset_mapper",
    "detectron2.data.samplers",
    "detectron2.data.transforms",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "projects.mixed_roi_heads",
    "shared.classification",
    "shared.data",
    "shared.modeling",
    "shared.solver",
    "torch.nn",
    "torch.optim",
    "torchvision.ops",
    "torchvision.transforms",
)
PROJECT = re.compile(r"projects\.[A-Z]\w*\.")  # and the folders of methods, also of yours
UNTRUSTED = "projects.MSFM.count"  # below `TRUSTED`, but it loads config files by name
# At any depth, as functions hand arguments on: upstream unpickles proposals, which a `cfg` may name as well.
UNTRUSTED_ARGUMENTS = ("cfg", "proposal_files", "LOAD_PROPOSALS", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST")
_REFERENCE = re.compile(r"\$\{\.*[\w.\[\]-]+\}")  # to another key; with a colon it would call a resolver of OmegaConf
_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)  # no part begins with an underscore


def trusted_callable(name: str, where: str) -> Callable:
    """The class or function that a dotted name stands for; UserError unless it exists and is a trusted one.

    What counts is where it is defined: shared.config.os.system is os's. Nothing outside trusted packages is imported.
    """
    more = tuple(part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip())
    packages = {entry.partition(".")[0] for entry in (*TRUSTED, *more)}
    if not (isinstance(name, str) and _NAME.fullmatch(name) and name.partition(".")[0] in packages):
        raise _refused(name, where)
    try:
        found = locate(name)
    except Exception as e:  # of the import, or of what is imported
        raise UserError(f"{where} names {name}, which cannot be found: {' '.join(str(e).split())}") from e
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    trusted = PROJECT.match(home) or any(f"{home}.".startswith(f"{entry}.") for entry in (*TRUSTED, *more))
    if not (callable(found) and trusted) or home.startswith(UNTRUSTED):
        raise _refused(name, where)
    return found


def _refused(name: Any, where: str) -> UserError:
    package, advice = str(name).partition(".")[0], ""
    theirs = package in sys.stdlib_module_names or any(entry.startswith(f"{package}.") for entry in TRUSTED)
    if isinstance(name, str) and _NAME.fullmatch(name) and not theirs:
        advice = f"; if you trust the file and that package, set {VARIABLE}={package[:40]}"
    return UserError(
        f"{where} names {repr(name)[:80]}, which is none of the functions that a .yaml config may call: refused, as it "
        f"could run any code{advice}."
    )


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML, and the two tags that a saved LazyConfig has: a class or function as a value, and ShapeSpec."""


def _named(loader: yaml.Loader, suffix: str, node: yaml.Node) -> Callable:
    return trusted_callable(suffix, f"Line {node.start_mark.line + 1}")


def _shape_spec(loader: yaml.Loader, node: yaml.Node) -> ShapeSpec:
    fields = loader.construct_mapping(node)
    if not all(value is None or type(value) is int for value in fields.values()):
        raise yaml.constructor.ConstructorError(
            None, None, "a ShapeSpec of something but whole numbers", node.start_mark
        )
    return ShapeSpec(**fields)


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _named)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec", _shape_spec)
_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, deep=True)
)
for _tag in ("omap", "pairs", "set"):  # of no use in a config, and no dict or list
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_undefined)


def read_lazy_yaml(text: str, where: str) -> dict:
    """The mapping that the text of a LazyConfig's .yaml holds. UserError, beginning with `where`: not YAML, no mapping,
    a tag that would make an object, a call of something that is not trusted, a text that OmegaConf would compute."""
    try:
        content = yaml.load(text, Loader=_PlainLoader)
        if not isinstance(content, dict):
            raise UserError("it holds no keys.")
        _check(content, "")
    except yaml.constructor.ConstructorError as e:
        place = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise UserError(f"{where}: {place}{e.problem}; only plain values are read.") from e
    except yaml.YAMLError as e:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(e).split())}") from e
    except RecursionError as e:
        raise UserError(f"{where} is nested too deeply, or refers to itself.") from e
    except (TypeError, ValueError) as e:  # ShapeSpec's arguments, keys that are no text, numbers without end
        raise UserError(f"{where} cannot be read: {' '.join(str(e).split())}") from e
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    return content


def _check(node: Any, key: str) -> None:
    """UserError where a value at or below `key` could have something called that is not trusted."""
    if isinstance(node, str) and "${" in _REFERENCE.sub("", node):
        raise UserError(f"key {key} is computed ({node[:60]!r}): only references to other keys are read.")
    if isinstance(node, dict):
        if "_target_" in node:
            trusted_callable(node["_target_"], f"key {_below(key, '_target_')}")
        for name, value in node.items():
            if name in UNTRUSTED_ARGUMENTS and value:
                raise UserError(
                    f"key {_below(key, name)} can name pickled files, which could run any code: refused, give it in a "
                    f".py config."
                )
            _check(value, _below(key, name))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            _check(value, _below(key, i))


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
