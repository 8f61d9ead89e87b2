"""A second and a third try when the GPU's memory runs out."""

import logging
from collections.abc import Callable
from functools import wraps

import torch


def _to_cpu(x):
    """Tensors, Boxes and the like on a GPU move to the CPU; anything else stays as it is."""
    return x.to(device="cpu") if str(getattr(x, "device", "")).startswith("cuda") and hasattr(x, "to") else x


def retry_if_cuda_oom(func: Callable) -> Callable:
    """`func` (free of side effects) that, out of CUDA memory, is run again with an empty cache, then on the CPU, to
    which direct arguments move and where the result stays."""

    @wraps(func)
    def wrapped(*args, **kwargs):
        for _ in range(2):
            try:
                return func(*args, **kwargs)
            except RuntimeError as e:
                if "CUDA out of memory" not in str(e):
                    raise
            torch.cuda.empty_cache()  # here the failed call's frames, and their tensors, are gone
        logging.getLogger(__name__).info(f"Out of GPU memory: trying {func} on the CPU")
        return func(*map(_to_cpu, args), **{k: _to_cpu(v) for k, v in kwargs.items()})

    return wrapped
