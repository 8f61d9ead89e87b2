"""Names to objects and back: the text form of a `_target_`."""

import functools
import importlib
from contextlib import suppress
from typing import Any

from fvcore.common.registry import Registry as Registry


def locate(name: str) -> Any:
    """The object at a dotted path such as "torch.optim.SGD", modules imported as needed.

    Where a module hides behind an attribute of its package (torchvision.ops.roi_align), the
    attribute wins. Raises ImportError.
    """
    parts = name.split(".")
    for n in range(len(parts) + 1):
        path = ".".join(parts[:n]) or "builtins"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as e:
            if e.name == path:
                break
            raise ImportError(f"Cannot import {path!r} to locate {name!r}: {e}") from e
        except Exception as e:
            raise ImportError(f"Cannot import {path!r} to locate {name!r}: {e!r}") from e
        with suppress(AttributeError):
            return functools.reduce(getattr, parts[n:], module)
    raise ImportError(f"Cannot locate {name!r}: neither a module nor an attribute of one.")


def _convert_target_to_string(target: Any) -> str:
    """`module.qualname` with the shortest module prefix at which the same object is reachable."""
    module, qualname = target.__module__, target.__qualname__
    parts = module.split(".")
    for n in range(1, len(parts)):
        candidate = ".".join([*parts[:n], qualname])
        try:
            if locate(candidate) is target:
                return candidate
        except ImportError:
            continue
    return f"{module}.{qualname}"
