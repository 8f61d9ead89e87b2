"""Names to objects and back: the text form of a `_target_`."""

import functools
import importlib
from contextlib import suppress

from fvcore.common.registry import Registry as Registry


def locate(name: str) -> object:
    """The object at a dotted path such as "torch.optim.SGD", modules imported as needed. Raises ImportError.
    Where a module hides behind an attribute of its package (torchvision.ops.roi_align), the attribute wins."""
    parts = name.split(".")
    for n in range(len(parts) + 1):
        path = ".".join(parts[:n]) or "builtins"
        try:
            module = importlib.import_module(path)
        except Exception as e:
            if isinstance(e, ModuleNotFoundError) and e.name == path:
                break
            raise ImportError(f"Cannot import {path!r} to locate {name!r}: {e!r}") from e
        with suppress(AttributeError):
            return functools.reduce(getattr, parts[n:], module)
    raise ImportError(f"Cannot locate {name!r}: neither a module nor an attribute of one.")


def _convert_target_to_string(target) -> str:
    """`module.qualname` with the shortest module prefix at which the same object is reachable."""
    parts = target.__module__.split(".")
    for n in range(1, len(parts)):
        candidate = ".".join([*parts[:n], target.__qualname__])
        with suppress(ImportError):
            if locate(candidate) is target:
                return candidate
    return f"{target.__module__}.{target.__qualname__}"
