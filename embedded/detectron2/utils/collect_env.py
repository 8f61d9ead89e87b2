"""What a bug report needs to know about the machine."""

import importlib
import os
import platform
import sys
from functools import partial

import torch
from tabulate import tabulate


def _module(name: str) -> str:
    module = importlib.import_module(name)
    version = getattr(module, "__version__", "unknown version")
    engine = ", the embedded engine" if hasattr(module, "EMBEDDED") else ""
    return f"{version} @ {os.path.dirname(module.__file__)}{engine}"


def _gpus() -> str:
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "none"


_MODULES = ("numpy", "detectron2", "torch", "torchvision", "fvcore", "iopath", "PIL", "cv2")
_PROBES = {
    "platform": platform.platform,
    "Python": lambda: sys.version,
    **{name: partial(_module, name) for name in _MODULES},
    "CUDA": lambda: f"of torch {torch.version.cuda}, usable: {torch.cuda.is_available()}",
    "GPUs": _gpus,
    **{name: partial(os.getenv, name, "not set") for name in ("CUDA_HOME", "DETECTRON2_DATASETS")},
}


def collect_env_info() -> str:
    """Versions, paths and devices as a text table. Never fails: a failure is what it reports."""
    rows = []
    for name, probe in _PROBES.items():
        try:
            rows.append((name, probe()))
        except Exception as e:
            rows.append((name, f"{type(e).__name__}: {e}"))
    return tabulate(rows)


if __name__ == "__main__":
    print(collect_env_info())
