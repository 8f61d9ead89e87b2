"""The torch version and the seeds of a run."""

import logging
import os
import random
import time

import numpy as np
import torch

TORCH_VERSION = tuple(int(x) for x in torch.__version__.split(".")[:2])


def seed_all_rng(seed: int | None = None) -> None:
    """Seed numpy, torch (and CUDA) and random. None: a seed from pid, time and the system."""
    if seed is None:
        seed = os.getpid() + time.time_ns() % 10**8 + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators, too
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
