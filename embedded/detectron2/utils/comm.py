"""Collective communication that also works without torch.distributed (world 1, rank 0)."""

import functools

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP = None


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    return dist.get_world_size() if _initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if _initialized() else 0


def is_main_process() -> bool:
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """One group per machine of equally many workers; called once by `launch` in every worker."""
    global _LOCAL_PROCESS_GROUP
    assert _LOCAL_PROCESS_GROUP is None, "The local process group exists already."
    world, n = get_world_size(), num_workers_per_machine
    assert world % n == 0, f"{world} workers do not divide into machines of {n}."
    for first in range(0, world, n):
        group = dist.new_group(list(range(first, first + n)))  # every worker takes part in creating every group
        if first <= get_rank() < first + n:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> "dist.ProcessGroup":
    """The workers of this machine. AssertionError if there is no such group."""
    assert _LOCAL_PROCESS_GROUP is not None, "No local process group: start the workers by detectron2.engine.launch."
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    return dist.get_rank(group=get_local_process_group()) if _initialized() else 0


def get_local_size() -> int:
    return dist.get_world_size(group=get_local_process_group()) if _initialized() else 1


def synchronize() -> None:
    if get_world_size() > 1:
        is_nccl = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if is_nccl else None)


@functools.lru_cache
def _object_group():
    """The group for pickled objects. NCCL moves nothing but GPU tensors: gloo beside it; else None, the default."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else None


def all_gather(data, group=None) -> list:
    """`data` (any picklable object) of every rank, in rank order."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    out = [None] * dist.get_world_size(group)
    dist.all_gather_object(out, data, group=group)
    return out


def gather(data, dst: int = 0, group=None) -> list:
    """Like `all_gather` on rank `dst`; an empty list on the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    out = [None] * dist.get_world_size(group) if dist.get_rank() == dst else None
    dist.gather_object(data, out, dst=dst, group=group)
    return out or []


def shared_random_seed() -> int:
    """Rank 0's draw from numpy's global generator; every rank draws one number."""
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum (or mean) over ranks of a dict of scalar tensors. Complete on rank 0 only."""
    if get_world_size() == 1:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)
        values = torch.stack([input_dict[k] for k in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= get_world_size()
        return dict(zip(names, values))
