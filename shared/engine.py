"""Which Detectron2 answers `import detectron2`: upstream when installed, else our `embedded` one.

`DETECTRON2=upstream|embedded|auto` (default auto) decides, once per process and its children:

    import projects              # or: from shared import engine; engine.activate()
    import detectron2            # either engine, same API

`python -m shared.engine` prints which engine runs and the versions that matter.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "embedded"
VARIABLE = "DETECTRON2"
CHOICES = ("auto", "upstream", "embedded")


class EngineError(ImportError):
    """The wanted engine cannot run in this process; the message says why and what to do."""


class _EmbeddedOnly:
    """Meta path finder that answers every `detectron2...` import from `embedded/` or not at all.

    An editable install of upstream puts a finder on `sys.meta_path` that answers for submodules
    that the embedded engine does not have; without this guard both engines would mix.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name.partition(".")[0] != "detectron2":
            return None
        spec = PathFinder.find_spec(name, path if "." in name else [str(EMBEDDED_ROOT)])
        if spec is None:
            raise ModuleNotFoundError(
                f"The embedded Detectron2 has no module {name!r}; install upstream Detectron2 or "
                f"unset {VARIABLE} if you need it.",
                name=name,
            )
        return spec


def current() -> str | None:
    """ "embedded" or "upstream" if `detectron2` is already imported, else None."""
    module = sys.modules.get("detectron2")
    if module is None:
        return None
    return "embedded" if getattr(module, "EMBEDDED", False) else "upstream"


def upstream_spec() -> ModuleSpec | None:
    """Where upstream would be imported from, or None. The embedded folder does not count."""
    path = [p for p in sys.path if Path(p or ".").resolve() != EMBEDDED_ROOT]
    for finder in sys.meta_path:
        if isinstance(finder, _EmbeddedOnly) or not hasattr(finder, "find_spec"):
            continue
        on_path = finder is PathFinder
        spec = finder.find_spec("detectron2", path if on_path else None)
        if spec is not None and (spec.origin is None or not _is_embedded(spec.origin)):
            return spec if spec.origin is not None else None  # a bare folder is no installation
    return None


def _is_embedded(file: str) -> bool:
    return EMBEDDED_ROOT in Path(file).resolve().parents


def activate(choice: str | None = None) -> str:
    """Make `import detectron2` work. Returns "embedded" or "upstream".

    Args:
        choice: "auto", "upstream" or "embedded"; default the environment's `DETECTRON2`, else auto.
    Raises:
        EngineError: unknown choice; upstream wanted but not installed; the other engine already
            imported in this process.
    """
    choice = choice or os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise EngineError(f"{VARIABLE}={choice!r} is unknown: use one of {', '.join(CHOICES)}.")
    running = current()
    if running is not None:
        if choice not in ("auto", running):
            raise EngineError(
                f"{VARIABLE}={choice}, but this process already imported the {running} Detectron2 "
                f"from {sys.modules['detectron2'].__file__}: import projects before detectron2."
            )
        return running
    if choice == "auto":
        choice = "upstream" if upstream_spec() is not None else "embedded"
    if choice == "upstream":
        _use_upstream()
    else:
        _use_embedded()
    os.environ[VARIABLE] = choice  # child processes (data loaders, launch) choose the same
    return choice


def _use_upstream() -> None:
    if upstream_spec() is None:
        raise EngineError(
            f"{VARIABLE}=upstream, but upstream Detectron2 is not installed in {sys.prefix}: "
            f"install it, or set {VARIABLE}=embedded."
        )
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != EMBEDDED_ROOT]


def _use_embedded() -> None:
    if not any(isinstance(f, _EmbeddedOnly) for f in sys.meta_path):
        sys.meta_path.insert(0, _EmbeddedOnly())
    if str(EMBEDDED_ROOT) not in sys.path:  # spawned processes inherit sys.path, not meta_path
        sys.path.insert(0, str(EMBEDDED_ROOT))


def describe() -> str:
    """One line per fact: the engine, where it lives, and the versions that matter."""
    engine = activate()
    import torch

    import detectron2

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    rows = {
        "engine": f"{engine} Detectron2 {detectron2.__version__} ({Path(detectron2.__file__).parent})",
        "python": f"{platform.python_version()} ({sys.executable})",
        **{name: version(name) for name in ("torch", "torchvision", "fvcore", "omegaconf")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }
    return "\n".join(f"{key:<12}{value}" for key, value in rows.items())


if __name__ == "__main__":
    try:
        print(describe())
    except EngineError as e:
        sys.exit(f"error: {e}")
