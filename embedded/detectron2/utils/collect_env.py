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
    text = f"{getattr(module, '__version__', 'unknown version')} @ {os.path.dirname(module.__file__)}"
    return f"{text}, the embedded engine" if hasattr(module, "EMBEDDED") else text


_MODULES = ("numpy", "detectron2", "torch", "torchvision", "fvcore", "iopath", "PIL", "cv2")
_PROBES = {
    "platform": platform.platform,
    "Python": lambda: sys.version,
    **{name: partial(_module, name) for name in _MODULES},
    "CUDA": lambda: f"of torch {torch.version.cuda}, usable: {torch.cuda.is_available()}",
    "GPUs": lambda: ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none",
    **{name: partial(os.getenv, name, "not set") for name in ("CUDA_HOME", "DETECTRON2_DATASETS")},
}


def _answer(probe) -> str:
    try:
        return probe()
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def collect_env_info() -> str:
    """Versions, paths and devices as a text table. Never fails: a failure is what it reports."""
    return tabulate([(name, _answer(probe)) for name, probe in _PROBES.items()])
