"""Start one process per GPU (or per gloo worker on a CPU), on one machine or several."""

import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in every worker; in this very process if there is only one.
    num_gpus_per_machine: workers per machine; without CUDA they talk over gloo. dist_url: how they meet,
    tcp://host:port, or "auto": a free local port."""
    if num_machines * num_gpus_per_machine == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "dist_url=auto works on one machine only: give tcp://host:port."
        with socket.socket() as s:
            s.bind(("", 0))  # free now; somebody else may still take it before we do
            dist_url = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    distributed = (num_machines, num_gpus_per_machine, machine_rank, dist_url, timeout)
    mp.start_processes(_worker, nprocs=num_gpus_per_machine, args=(distributed, main_func, args), daemon=False)


def _worker(local_rank, distributed, main_func, args):
    num_machines, num_per_machine, machine_rank, dist_url, timeout = distributed
    has_gpu, num_gpus = torch.cuda.is_available(), torch.cuda.device_count()
    assert not has_gpu or num_per_machine <= num_gpus, f"{num_per_machine} workers, {num_gpus} GPUs: lower --num-gpus."
    dist.init_process_group(
        backend="NCCL" if has_gpu else "GLOO",
        init_method=dist_url,
        world_size=num_machines * num_per_machine,
        rank=machine_rank * num_per_machine + local_rank,
        timeout=timeout,
    )
    comm.create_local_process_group(num_per_machine)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()  # nobody starts before all have arrived
    try:
        main_func(*args)
    finally:
        if dist.is_initialized():  # its threads, left alone, may abort the process at its exit
            dist.destroy_process_group()
