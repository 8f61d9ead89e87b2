"""Several processes for a test: of a command, or forked, which starts at once."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from detectron2.utils import comm

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
PATIENCE = 600  # seconds until processes that hang are given up


def run_forked(world_size: int, function: Callable[..., None], folder: Path, *args) -> None:
    """`function(*args)` in forked processes of one gloo group, as `train_net.py` starts them. All must end well.

    folder: for what they print, `{world size}_{rank}.log`.
    """
    fork = multiprocessing.get_context("fork")
    rendezvous = folder / f"rendezvous_{world_size}_{len(list(folder.iterdir()))}"
    started = [(world_size, rank, rendezvous, folder / f"{world_size}_{rank}.log") for rank in range(world_size)]
    workers = [fork.Process(target=_member, args=(*place, function, args)) for place in started]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        worker.kill()
    codes = [worker.exitcode for worker in workers]
    logs = "\n".join(f"--- {place[3].name}:\n{place[3].read_text()[-2000:]}" for place in started if any(codes))
    assert codes == [0] * world_size, f"{codes}\n{logs}"


def _member(world_size: int, rank: int, rendezvous: Path, log: Path, function: Callable[..., None], args) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=world_size, rank=rank)
        comm.create_local_process_group(world_size)
        function(*args)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise
