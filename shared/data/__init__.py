"""Data sets that the collection makes or reads itself."""

from importlib import import_module

_HOME = {"DigitsSpec": "digits", "make_digits": "digits", "register_digits": "digits", "statistics": "digits"}


def __getattr__(name: str):
    """Import on first use, so that `python -m shared.data.digits` does not load itself twice."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
