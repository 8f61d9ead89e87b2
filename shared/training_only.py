"""Which parts of a model exist for training alone: heads of auxiliary losses, teachers, memories of features.

A module names them in an attribute `training_only`, a tuple of its submodules' names. Without them its inference gives
the same output.
"""

from torch import nn


def training_only_prefixes(model: nn.Module) -> list[str]:
    """Dotted names, with a final dot, under which the model's state dict holds what training alone needs.

    Raises:
        ValueError: a module names something that it does not have; one that is None is left out.
    """
    prefixes = []
    for path, module in model.named_modules():
        for name in getattr(module, "training_only", ()):
            if not hasattr(module, name):
                raise ValueError(f"{type(module).__name__}.training_only names {name!r}, which it does not have.")
            prefix = f"{path}.{name}." if path else f"{name}."
            if getattr(module, name) is not None and not prefix.startswith(tuple(prefixes)):
                prefixes.append(prefix)
    return prefixes
