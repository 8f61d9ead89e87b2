"""Comparing the running torch with a version."""

import torch


def min_torch_version(min_version: str) -> bool:
    """Whether torch is `min_version` (such as "2.11") or newer."""
    return bool(torch.__version__ >= min_version)
