"""Modules that remember earlier iterations, and passes of which they are to remember nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def memories_held(model: nn.Module) -> Iterator[None]:
    """Inside, the modules of `model` with an attribute `held` find it True: they use what they remember and take in
    nothing."""
    modules = [module for module in model.modules() if hasattr(module, "held")]
    for module in modules:
        module.held = True
    try:
        yield
    finally:
        for module in modules:
            module.held = False
