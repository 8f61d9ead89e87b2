"""Memory stays flat over iterations and evaluations; files and worker processes are given back."""

import gc
import json
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from detectron2.utils.events import EventStorage
from shared.training import loop, metrics
from shared.training.hooks import SeedEachIteration

from .runs import Training, make_config

PAGE = os.sysconf("SC_PAGE_SIZE")


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # of the listing itself
            continue
    return sorted(found)


def children() -> list[int]:
    """Those that run. One that has ended stays listed until Python looks after it, before it starts the next one."""
    pids = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]


def resident() -> int:
    """Bytes of memory that are this process's own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measure(file: Path, every: int):
    """In the child: note memory on the way, files and children before and after the training."""
    noted, before_step, train = {"memory": []}, SeedEachIteration.before_step, loop.train

    def with_note(self):
        before_step(self)
        if self.trainer.iter % every == 0:
            gc.collect()
            noted["memory"].append((self.trainer.iter, resident()))
            noted["on the way"] = [len(open_files()), len(children())]

    def whole(*args):
        noted["files before"] = open_files()
        train(*args)
        gc.collect()
        for _ in range(600):  # the loader tells its workers to end, and waits for a while only
            if not multiprocessing.active_children() and not children():
                break
            time.sleep(0.1)
        noted.update({"files after": open_files(), "children after": children()})
        file.write_text(json.dumps(noted))

    SeedEachIteration.before_step, loop.train = with_note, whole


def run_measured(tmp_path, workers: int, every: int, *settings: str) -> dict:
    arguments = make_config("retinanet", tmp_path, f"dataloader.train.num_workers={workers}", *settings)
    file = tmp_path / "noted.json"
    training = Training(arguments, tmp_path / "run", before=lambda: measure(file, every))
    assert training.end() == 0, training.errors()
    return json.loads(file.read_text())


def assert_given_back(noted: dict, workers: int) -> None:
    """All files but the logs, which stay open till the process ends, and what torch opens once."""
    assert noted["on the way"][1] >= workers  # they were seen
    assert noted["children after"] == []
    left = [f for f in noted["files after"] if f not in noted["files before"]]
    assert [f for f in left if not f.endswith("log.txt")] == []


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_files_and_workers_are_given_back(tmp_path, workers):
    settings = ["train.max_iter=6", "train.eval_period=2", f"dataloader.test.num_workers={workers}"]
    assert_given_back(run_measured(tmp_path, workers, 1, *settings), workers)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_over_2000_iterations(tmp_path, workers):
    """From the iteration on from which no more metrics are kept."""
    settings = ["train.max_iter=2000", "train.eval_period=400", "train.checkpointer.period=200", "optimizer.lr=0.0001"]
    noted = run_measured(tmp_path, workers, 25, *settings)
    iterations, memory = np.array([row for row in noted["memory"] if row[0] >= metrics.KEPT], dtype=float).T
    slope = np.polyfit(iterations, memory, 1)[0]
    print(f"workers {workers}: {memory[0] / 2**20:.0f} MiB, {slope:.0f} bytes an iteration")
    assert slope < 1024
    assert_given_back(noted, workers)


def test_the_storage_of_metrics_stops_growing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "KEPT", 5)
    hook = metrics.WriteMetrics([metrics.MetricsFile(str(tmp_path))], period=2, folder=str(tmp_path))
    with EventStorage() as storage:
        hook.trainer = type("Trainer", (), {"storage": storage, "max_iter": 40, "iter": 0})()
        for iteration in range(30):
            hook.trainer.iter = storage.iter = iteration
            storage.put_scalar("loss", float(iteration))
            hook.after_step()
        assert [value for value, _ in storage.history("loss").values()] == [25.0, 26.0, 27.0, 28.0, 29.0]
