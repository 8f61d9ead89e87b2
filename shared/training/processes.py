"""The processes of a training: started here, or joined where torchrun has started them.

One that dies ends the others: at their next exchange with it they fail, and after `GRACE` seconds they are killed. The
launching process then says, as its last line, which one died of what.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing import start_processes

from detectron2.utils import comm
from shared.errors import UserError
from shared.training.setup import check_port, started_by_torchrun
from shared.training.stops import passed_on

GRACE = 20.0  # seconds: enough to write the checkpoint that is being written
POLL = 0.5  # seconds
METHOD = "spawn"


class ProcessDied(UserError):
    """A process ended with an error that is no UserError."""

    def __init__(self, sentence: str, exit_code: int):
        super().__init__(sentence)
        self.exit_code = exit_code


class FirstError:
    """What the first process that failed says of it; the others fail because of it."""

    def __init__(self):
        context = multiprocessing.get_context(METHOD)
        self._known, self._said = context.Value("b", 0), context.SimpleQueue()

    def claim(self, rank: int, sentence: str) -> bool:
        """Whether it was the first. sentence: "" of an error that the process reports itself."""
        with self._known.get_lock():
            first, self._known.value = not self._known.value, 1
        if first:
            self._said.put((rank, sentence))
        return first

    def known(self) -> bool:
        return bool(self._known.value)

    def get(self) -> tuple[int | None, str]:
        """(rank, sentence); (None, "") where nobody could say anything."""
        return (None, "") if self._said.empty() else self._said.get()


class Place(NamedTuple):
    """Where a process stands."""

    num_machines: int
    per_machine: int
    machine_rank: int
    dist_url: str
    device: str

    def describe(self, local_rank: int) -> str:
        return f"Process {self.rank(local_rank)} of {self.world_size}"

    def rank(self, local_rank: int) -> int:
        return self.machine_rank * self.per_machine + local_rank

    @property
    def world_size(self) -> int:
        return self.num_machines * self.per_machine


def run_processes(main: Callable, args: argparse.Namespace, device: str, *main_args) -> None:
    """Call `main(*main_args)` in every process: here, under torchrun, or in processes of our own. device: the config's;
    processes on a CPU meet by gloo, also where there are GPUs.

    Raises:
        ProcessDied: names the process, its error and, for a signal, the exit code 128 + its number.
        SystemExit: a process has reported its error and exited with this code.
    """
    if started_by_torchrun():
        _join(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), device)
        record(_then_leave_group)(main, *main_args)
        return
    if args.num_gpus * args.num_machines == 1:
        main(*main_args)
        return
    check_port(args.dist_url, args.machine_rank)
    url = _free_local_url() if args.dist_url == "auto" else args.dist_url
    place, first = Place(args.num_machines, args.num_gpus, args.machine_rank, url, device), FirstError()
    with passed_on():
        arguments = (place, first, main, main_args)
        context = start_processes(_worker, arguments, nprocs=args.num_gpus, join=False, start_method=METHOD)
        dead = _wait_for_failure(context.processes, first)
        if dead is not None:
            _end(context.processes)
            _report(place, first, context.processes, dead)


def _free_local_url() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # free now; somebody else may still take it before we do
        return f"tcp://127.0.0.1:{s.getsockname()[1]}"


def _worker(local_rank: int, place: Place, first: FirstError, main: Callable, main_args: tuple) -> None:
    try:
        group = dict(init_method=place.dist_url, world_size=place.world_size, rank=place.rank(local_rank))
        _join(local_rank, place.per_machine, place.device, **group)
        _then_leave_group(lambda: _claiming(local_rank, first, main, main_args))
    except Exception as e:  # before it could be claimed
        if first.claim(local_rank, _sentence(e)):
            traceback.print_exc()
        sys.exit(1)


def _claiming(local_rank: int, first: FirstError, main: Callable, main_args: tuple) -> None:
    """Call `main`; its error is claimed while the process group stands, before the others can notice."""
    try:
        main(*main_args)
    except SystemExit as e:
        if e.code:
            first.claim(local_rank, "")
        raise
    except Exception as e:
        if first.claim(local_rank, _sentence(e)):
            traceback.print_exc()
        sys.exit(1)


def _sentence(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())}"[:2000]


def _join(local_rank: int, per_machine: int, device: str, **group) -> None:
    """group: of init_process_group, what torchrun has not put in the environment."""
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", **group)
    comm.create_local_process_group(per_machine)
    comm.synchronize()  # nobody starts before all have arrived


def _then_leave_group(main: Callable, *args) -> None:
    """`main(*args)`; then leave the process group: its threads may abort a process that just exits."""
    try:
        main(*args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _wait_for_failure(workers: Sequence[BaseProcess], first: FirstError) -> list[int] | None:
    """None once all have ended well; else, once one has failed, the local ranks of those that have ended badly."""
    running = {worker.sentinel: worker for worker in workers}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running), timeout=POLL):
            running.pop(sentinel).join()
        dead = [rank for rank, worker in enumerate(workers) if worker.exitcode not in (None, 0)]
        if dead or first.known():
            return dead
    return None


def _end(workers: Sequence[BaseProcess]) -> None:
    """Give them all `GRACE` seconds together, then kill those that are left."""
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
    for worker in workers:
        worker.kill()  # of one that has ended: nothing
        worker.join()


def _report(place: Place, first: FirstError, workers: Sequence[BaseProcess], dead: list[int]) -> None:
    """Raise what ends the launching process. dead: see `_wait_for_failure`."""
    claimed, sentence = first.get()
    for rank in dead:
        code = workers[rank].exitcode
        if code < 0 and rank != claimed:  # it could not say anything; the others' errors come from this
            why = " Out of memory?" if -code == signal.SIGKILL else ""
            raise ProcessDied(f"{place.describe(rank)} was killed by {signal.Signals(-code).name}.{why}", 128 - code)
    if sentence:
        raise ProcessDied(f"{place.describe(claimed)} died of {sentence}", 1)
    code = workers[dead[0] if claimed is None else claimed].exitcode
    sys.exit(code if code > 0 else 128 - code)
