"""Loads the compiled ops (`shared/ops/_C`, namespace `d2ops`) and says what to do where there are none.

`SHARED_OPS=reference` chooses the plain PyTorch path on purpose: slow, and said once in the log. Needs torch alone.
"""

import functools
import json
import logging
import os
from pathlib import Path

import torch

from .sources import CSRC, hash_sources

FOLDER = Path(__file__).resolve().parent
BUILD_COMMAND = "make setup (or: python setup.py build_ext --inplace)"
CPU_LEVELS = ("DEFAULT", "AVX2", "AVX512")

_logger = logging.getLogger(__name__)


def build_info() -> dict | None:
    """What the library was built from and for: sources, torch, cpu, cuda, architectures. None without a build."""
    path = FOLDER / "build.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _load() -> str | None:
    """Load the library. Returns why there is none, as the start of a sentence, or None on success."""
    library, info = next(FOLDER.glob("_C*.so"), None), build_info()
    if library is None or info is None:
        return "The native ops are not built"
    if info["torch"] != torch.__version__:
        return f"The native ops were built for torch {info['torch']}, this is {torch.__version__}"
    here = torch.backends.cpu.get_cpu_capability()
    here = here if here in CPU_LEVELS else "DEFAULT"
    if info["cpu"] not in CPU_LEVELS[: CPU_LEVELS.index(here) + 1]:
        return f"The native ops were built for a processor with {info['cpu']}, this one has {here}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"The native ops do not load ({error})"
    if CSRC.is_dir() and hash_sources() != info["sources"]:
        _logger.warning("shared/ops/csrc has changed since the native ops were built. Run: %s", BUILD_COMMAND)
    return None


_problem = _load()
available = _problem is None


@functools.cache
def _say_once() -> None:
    _logger.warning("SHARED_OPS=reference: the ops of shared.ops run in plain PyTorch, slowly and with more memory.")


def use_reference() -> bool:
    """Whether the user chose the plain PyTorch path (`SHARED_OPS=reference`).

    Raises RuntimeError, with the command that builds, where there are no native ops and nothing was chosen.
    """
    choice = os.environ.get("SHARED_OPS", "native")
    if choice == "reference":
        _say_once()
        return True
    if choice != "native":
        raise ValueError(f"SHARED_OPS is {choice!r}: set it to 'native' (default) or 'reference'.")
    if not available:
        raise RuntimeError(
            f"{_problem}. Run: {BUILD_COMMAND}. Or set SHARED_OPS=reference to run them in plain PyTorch, slowly."
        )
    return False


def once_differentiable(*backward_ops: str) -> None:
    """Make a second derivative through these backward ops an error instead of a silent zero."""
    for name in backward_ops:

        def setup_context(ctx, inputs, output):
            pass

        def backward(ctx, *grads, name=name):
            raise RuntimeError(f"d2ops::{name} has no derivative: use SHARED_OPS=reference for second derivatives.")

        torch.library.register_autograd(f"d2ops::{name}", backward, setup_context=setup_context)
