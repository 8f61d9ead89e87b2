"""What a LazyConfig's .yaml may name.

Each `_target_` of a LazyConfig is imported and called. A .py config is code anyway; a .yaml, such as the config.yaml of
a run that came with a checkpoint, is read here: as plain values, with calls of `TRUSTED` alone. These neither run code
that their arguments name nor import what is not installed; what they are told to read, write or download, they do.
"""

import os
import re
from collections.abc import Callable, Iterator
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
    "projects.DEPLA",
    "projects.Detectors",
    "projects.InterNet",
    "projects.LIP",
    "projects.LabelEnc",
    "projects.MSFM",
    "projects.MuSu",
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
UNTRUSTED = "projects.MSFM.count"  # below `TRUSTED`, but it loads config files by name
UNTRUSTED_ARGUMENTS = ("proposal_files",)  # upstream unpickles them
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
    trusted = any(f"{home}.".startswith(f"{entry}.") for entry in (*TRUSTED, *more))
    if not (callable(found) and trusted) or home.startswith(UNTRUSTED):
        raise _refused(name, where)
    return found


def _refused(name: Any, where: str) -> UserError:
    text = repr(name)[:80]
    package = str(name).partition(".")[0][:40] or "PACKAGE"
    return UserError(
        f"{where} names {text}, which is none of the functions that a .yaml config may call: refused, as it could run "
        f"any code; if you trust the file and that package, set {VARIABLE}={package}."
    )


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML, and the two tags that a saved LazyConfig has: a class or function as a value, and ShapeSpec."""


def _named(loader: yaml.Loader, suffix: str, node: yaml.Node) -> Callable:
    return trusted_callable(suffix, f"Line {node.start_mark.line + 1}")


def _shape_spec(loader: yaml.Loader, node: yaml.Node) -> ShapeSpec:
    return ShapeSpec(**loader.construct_mapping(node))


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _named)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec", _shape_spec)
_PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node, deep=True)
)


def read_lazy_yaml(text: str, where: str) -> dict:
    """The mapping that the text of a LazyConfig's .yaml holds. UserError, beginning with `where`: not YAML, no mapping,
    a tag that would make an object, a call of something that is not trusted."""
    try:
        content = yaml.load(text, Loader=_PlainLoader)
        if not isinstance(content, dict):
            raise UserError("it holds no keys.")
        for key, name, arguments in _calls(content):
            trusted_callable(name, f"key {key}_target_")
            for argument in UNTRUSTED_ARGUMENTS:
                if arguments.get(argument):
                    raise UserError(f"key {key}{argument} names pickled files, which could run any code: refused.")
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


def _calls(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict]]:
    """(dotted key with a dot at its end, `_target_`, its node) wherever there is one."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield prefix, node["_target_"], node
        for key, value in node.items():
            yield from _calls(value, f"{prefix}{key}.")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _calls(value, f"{prefix}{i}.")
