"""Where a run starts: anew or from a checkpoint, and with which seed."""

import logging
from typing import NamedTuple

import torch

from detectron2.utils import comm
from shared.checkpoint import checkpoint_to_resume
from shared.files import remove_incomplete
from shared.training.folder import from_main

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    checkpoint: str | None  # None: a new run
    seed: int
    first_iter: int


def find_start(folder: str, resume: bool, seed: int) -> Start:
    """What the main process finds in `folder`, in all of them.

    seed: the config's; below 0 it is drawn, or what the checkpoint's run has drawn.

    Raises:
        UserError: in all processes, where every checkpoint is damaged.
    """
    drawn = comm.shared_random_seed()

    def find() -> Start:
        remove_incomplete(folder)
        checkpoint = checkpoint_to_resume(folder) if resume else None
        return _start_of(checkpoint, drawn if seed < 0 else seed, fixed=seed >= 0)

    found = from_main(find)
    if seed < 0 and comm.is_main_process():
        logger.info("Seed %d, as the config has none: --resume knows it from the checkpoint.", found.seed)
    return found


def _start_of(checkpoint: str | None, seed: int, fixed: bool) -> Start:
    """fixed: whether `seed` stands, whatever the checkpoint's was."""
    if checkpoint is None:
        return Start(None, seed, 0)
    content = torch.load(checkpoint, map_location="meta", weights_only=True)
    return Start(checkpoint, seed if fixed else content.get("run", {}).get("seed", seed), content["iteration"] + 1)
