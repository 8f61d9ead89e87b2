"""Random numbers of a training run as a function of its seed and of what they are for.

Generators are seeded anew for every sample, batch and iteration. So nothing of their state has to be saved: a resumed
run draws what the uninterrupted one draws, with any number of worker processes.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Use(IntEnum):
    """What numbers are drawn for; part of the key, so that uses do not share their numbers."""

    LOADER = 0  # the data loader's construction
    SAMPLE = 1  # augmentation of one sample
    BATCH = 2  # collation of one batch
    STEP = 3  # the model's forward and backward pass, and hooks


def seed_generators(seed: int, *key: int, devices: bool = False) -> None:
    """Seed Python's, NumPy's and torch's global generators from `seed` and `key`, whole numbers from 0 on.

    devices: torch's generators of GPUs too.
    """
    words = np.random.SeedSequence([seed, *key]).generate_state(3, np.uint64).tolist()
    random.seed(words[0])
    np.random.seed(words[1] % 2**32)
    if devices:
        torch.manual_seed(words[2])
    else:
        torch.default_generator.manual_seed(words[2])


@contextmanager
def generators_kept() -> Iterator[None]:
    """After the block the three CPU generators go on as if nothing had been drawn in it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for restore, state in zip((random.setstate, np.random.set_state, torch.set_rng_state), states):
            restore(state)
