"""A second and a third try when the GPU's memory runs out."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps

import torch


@contextmanager
def _ignore_cuda_oom():
    try:
        yield
    except RuntimeError as e:
        if "CUDA out of memory" not in str(e):
            raise


def _to_cpu(x):
    """Tensors, Boxes and the like on a GPU move to the CPU; anything else stays as it is."""
    on_gpu = getattr(getattr(x, "device", None), "type", None) == "cuda" and hasattr(x, "to")
    return x.to(device="cpu") if on_gpu else x


def retry_if_cuda_oom(func: Callable) -> Callable:
    """`func` that, out of CUDA memory, is run again with an empty cache, then on the CPU.

    On the CPU only direct arguments are moved, and the result stays there. `func` has to be
    free of side effects.
    """

    @wraps(func)
    def wrapped(*args, **kwargs):
        with _ignore_cuda_oom():
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with _ignore_cuda_oom():
            return func(*args, **kwargs)
        logging.getLogger(__name__).info(f"Out of GPU memory: trying {func} on the CPU")
        return func(*map(_to_cpu, args), **{k: _to_cpu(v) for k, v in kwargs.items()})

    return wrapped
