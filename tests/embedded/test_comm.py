"""Collectives with one process and with two over gloo."""

import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm


def test_one_process():
    assert (comm.get_world_size(), comm.get_rank(), comm.is_main_process()) == (1, 0, True)
    assert (comm.get_local_rank(), comm.get_local_size()) == (0, 1)
    data = object()
    assert comm.all_gather(data) == [data] and comm.gather(data, dst=0) == [data]
    losses = {"b": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) is losses
    comm.synchronize()
    np.random.seed(3)
    expected = np.random.randint(2**31)
    np.random.seed(3)
    assert comm.shared_random_seed() == expected


@pytest.mark.embedded_only
def test_wrong_local_groups(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(AssertionError, match="2 workers do not divide into machines of 3"):
        comm.create_local_process_group(3)
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", object())
    with pytest.raises(AssertionError, match="exists already"):
        comm.create_local_process_group(1)


def check_ranks(rank):
    assert (comm.get_world_size(), comm.get_rank()) == (2, rank)
    assert comm.is_main_process() == (rank == 0)


def check_local_group(rank):
    """Two "machines" of one worker each."""
    for f in (comm.get_local_rank, comm.get_local_size, comm.get_local_process_group):
        with pytest.raises(AssertionError, match="launch"):
            f()
    comm.create_local_process_group(1)
    assert (comm.get_local_rank(), comm.get_local_size()) == (0, 1)
    assert comm.all_gather(rank, group=comm.get_local_process_group()) == [rank]


def check_objects(rank):
    assert comm.all_gather({"r": rank}) == [{"r": 0}, {"r": 1}]
    assert comm.gather("x" * (rank + 1)) == ([] if rank else ["x", "xx"])
    assert comm.gather(rank, dst=1) == ([0, 1] if rank else [])


def check_reduce_dict(rank):
    losses = {"b": torch.tensor(1.0 + rank, requires_grad=True), "a": torch.tensor(10.0 * rank)}
    if rank:
        losses = dict(reversed(losses.items()))  # the order of a dict must not matter
    mean, total = comm.reduce_dict(losses), comm.reduce_dict(losses, average=False)
    if rank == 0:
        assert mean == {"a": torch.tensor(5.0), "b": torch.tensor(1.5)}
        assert total == {"a": torch.tensor(10.0), "b": torch.tensor(3.0)}
        assert not mean["b"].requires_grad


def check_seed(rank):
    np.random.seed(rank)
    assert comm.shared_random_seed() == np.random.RandomState(0).randint(2**31)
    after_one = np.random.RandomState(rank)
    after_one.randint(2**31)
    assert np.random.rand() == after_one.rand()  # each rank has drawn once


def check_barrier(rank, folder):
    if rank == 1:
        time.sleep(0.3)
        (folder / "written").touch()
    comm.synchronize()
    assert (folder / "written").exists()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        check_ranks(rank)
        check_local_group(rank)
        check_objects(rank)
        check_reduce_dict(rank)
        check_seed(rank)
        check_barrier(rank, folder)
    finally:
        dist.destroy_process_group()
    (folder / f"done{rank}").touch()


def test_two_processes(tmp_path):
    mp.spawn(worker, args=(tmp_path,), nprocs=2)
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
