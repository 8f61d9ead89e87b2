"""Two processes over gloo: their set-up, averaged gradients and metrics, a file only one has."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from detectron2.engine import DEFAULT_TIMEOUT, launch

ROOT = Path(__file__).resolve().parents[2]

# A script rather than functions of this module: the workers import it, and nothing of pytest.
SCRIPT = """
import json, logging, sys
from pathlib import Path
from shared import engine
engine.activate()
import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, create_ddp_model, launch
from detectron2.utils import comm

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.0]))

    def forward(self, x):
        return {"loss_a": (self.w * x).sum(), "loss_b": (self.w * 2).sum()}

def worker(folder, embedded):
    torch.set_num_threads(1)
    rank = comm.get_rank()
    out = {"rank": rank, "local": comm.get_local_rank(), "world": comm.get_world_size(),
           "gathered": comm.all_gather(rank), "backend": dist.get_backend()}
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kwargs = {} if embedded else {"device_ids": None}
    ddp = create_ddp_model(model, broadcast_buffers=False, **kwargs)
    out["ddp"] = type(ddp).__name__
    trainer = SimpleTrainer(ddp, [torch.tensor([4.0 * rank])] * 2, optimizer)
    trainer.train(0, 1)
    out["w"] = model.w.item()
    out["metrics"] = {k: v[0] for k, v in trainer.storage.latest().items() if "time" not in k}
    checkpointer = DetectionCheckpointer(ddp, folder)
    checkpointer.save("both")
    comm.synchronize()
    out["saved"] = sorted(p.name for p in Path(folder).glob("*.pth"))
    if embedded:
        mine = f"{folder}/rank{rank}"  # as if each machine had a disk of its own
        if rank == 0:
            Path(mine).mkdir()
            torch.save({"model": {"w": torch.tensor([7.0])}, "x": 1}, mine + "/w.pth")
        out["extra"] = checkpointer.load(mine + "/w.pth")
        out["loaded"] = model.w.item()
        try:
            checkpointer.load(f"{folder}/rank{1 - rank}/w.pth")
        except OSError as e:
            out["error"] = str(e)
    Path(f"{folder}/{rank}.json").write_text(json.dumps(out))

if __name__ == "__main__":
    launch(worker, 2, dist_url="auto", args=(sys.argv[1], sys.argv[2] == "embedded"))
"""


def test_two_workers(tmp_path):
    from shared import engine

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    which = engine.current()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), which],
        env={**env, "DETECTRON2": which}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for rank, out in enumerate((main, other)):
        assert out["rank"] == out["local"] == rank and out["world"] == 2
        assert out["gathered"] == [0, 1] and out["backend"] == "gloo"
        assert out["ddp"] == "DistributedDataParallel"
        # d(w x + 2 w)/dw = x + 2: 2 and 6, mean 4, rate 0.1
        assert out["w"] == pytest.approx(0.6)
        assert out["saved"] == ["both.pth"]
    # losses before the step, w = 1: mean of 0 and 4; 2 for both
    assert main["metrics"] == {"loss_a": 2.0, "loss_b": 2.0, "total_loss": 4.0}
    assert other["metrics"] == {}
    if which == "embedded":
        assert main["loaded"] == other["loaded"] == 7.0
        assert main["extra"] == {"x": 1} and other["extra"] == {}
        assert "main worker" in main["error"] and "main worker" in other["error"]


def test_one_worker_is_this_process():
    seen = []
    launch(lambda *args: seen.append((os.getpid(), *args)), 1, args=(3, "x"))
    assert seen == [(os.getpid(), 3, "x")]


def test_auto_address_is_for_one_machine():
    with pytest.raises(AssertionError, match="dist_url=auto"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_default_timeout():
    assert timedelta(minutes=30) == DEFAULT_TIMEOUT
