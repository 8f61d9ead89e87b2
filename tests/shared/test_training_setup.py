"""The checks before any process starts, on a machine with GPUs that this one need not have."""

import pytest
import torch

from shared.config import load_config
from shared.errors import UserError
from shared.training.run import make_run
from shared.training.setup import check_device, check_processes, parse_arguments
from tests.paths import ROOT

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("device, processes", [("cuda", 1), ("cuda", 2), ("cuda:0", 1), ("cuda:1", 1), ("cpu", 8)])
def test_devices_that_exist(two_gpus, device, processes):
    check_device(device, processes, "train.device")


def test_devices_that_do_not(two_gpus):
    with pytest.raises(UserError, match="'cuda:7', but the last GPU of this machine is cuda:1: set train.device=cuda"):
        check_device("cuda:7", 1, "train.device")
    with pytest.raises(UserError, match="--num-gpus 3, but this machine has 2"):
        check_device("cuda", 3, "train.device")


def check(device: str, *flags: str) -> None:
    run = make_run(load_config(LAZY, [f"train.device={device}", "dataloader.train.total_batch_size=4"]))
    check_processes(parse_arguments(["--config-file", LAZY, *flags]), run)


@pytest.mark.parametrize("flags", [("--num-gpus", "2"), ("--num-machines", "2", "--dist-url", "tcp://node0:29500")])
def test_one_gpu_of_several_processes(flags):
    check("cuda", *flags)
    with pytest.raises(UserError, match="train.device=cuda:1 would put all 2 .* one GPU: set train.device=cuda"):
        check("cuda:1", *flags)


def test_torchrun_s_processes_count(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check("cuda")
    with pytest.raises(UserError, match="all 2 processes on one GPU"):
        check("cuda:1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="4 images cannot be shared evenly by 3 processes"):
        check("cuda")
