"""One process dies: the others end within a minute, and the last line says which one died of what."""

import multiprocessing
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from shared.training import processes as launcher
from shared.training.processes import FirstError, Place, ProcessDied
from tests.paths import ROOT
from tests.processes import ENVIRONMENT, TORCHRUN
from tests.scenes import make_coco

CONFIG = str(ROOT / "tests/tiny/dying.py")
LIMIT = 60  # seconds
LAST_LINE = {
    "exception": "error: Process {} of {} died of RuntimeError: something broke",
    "user error": "error: A sentence.",
    "kill": "error: Process {} of {} was killed by SIGKILL. Out of memory?",
}
CODE = {"exception": 1, "user error": 2, "kill": 137}


def run(tmp_path, launcher, processes, part, rank, how):
    train, val = make_coco(tmp_path / "train", images=8), make_coco(tmp_path / "val", images=16, seed=1)
    arguments = [
        *("--config-file", CONFIG, f"train.output_dir={tmp_path / 'run'}"),
        *("--train-json", str(train[0]), "--train-images", str(train[1])),
        *("--val-json", str(val[0]), "--val-images", str(val[1])),
        *(f"dataloader.{part}.mapper.rank={rank}", f"dataloader.{part}.mapper.how={how}"),
    ]
    if launcher == "own":
        start = ["train_net.py", "--num-gpus", str(processes), "--dist-url", "auto"]
    else:
        start = [*TORCHRUN, f"--nproc-per-node={processes}", "train_net.py"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, *start, *arguments], cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        while not (tmp_path / "run/died").exists() and process.poll() is None:
            time.sleep(0.1)
        try:
            _, error = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert (tmp_path / "run/died").exists(), error[-3000:]
    return process.returncode, error


@pytest.mark.parametrize(
    "processes, part, rank, how",
    [
        (2, "train", 1, "kill"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (2, "train", 1, "exception"),
                (2, "train", 1, "user error"),
                (2, "train", 0, "exception"),
                (2, "train", 0, "kill"),
                (2, "test", 1, "exception"),
                (2, "test", 0, "kill"),
                (4, "train", 2, "kill"),
                (4, "test", 3, "exception"),
            )
        ),
    ],
)
def test_own_launcher(tmp_path, processes, part, rank, how):
    code, error = run(tmp_path, "own", processes, part, rank, how)
    assert code == CODE[how], error[-3000:]
    assert error.splitlines()[-1] == LAST_LINE[how].format(rank, processes)
    assert not (tmp_path / "run/inference/results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes, part, rank, how", [(2, "train", 1, "kill"), (2, "test", 0, "exception")])
def test_torchrun(tmp_path, processes, part, rank, how):
    """Its own table comes last; the root cause in it is the process that died first."""
    code, error = run(tmp_path, "torchrun", processes, part, rank, how)
    assert code == 1, error[-3000:]
    cause = error.rpartition("Root Cause")[2]
    assert f"rank      : {rank} " in cause
    assert ("RuntimeError: something" if how == "exception" else "Signal 9 (SIGKILL)") in cause


# ---------------------------------------------------------------- parts of the launcher
def test_torchrun_s_processes_begin_together(monkeypatch):
    """None is to see, as it starts, what another one has written. On a CPU by gloo, also where there is a GPU."""
    calls = []
    for name, value in {"LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher.dist, "init_process_group", calls.append)
    monkeypatch.setattr(launcher.comm, "create_local_process_group", calls.append)
    monkeypatch.setattr(launcher.comm, "synchronize", lambda: calls.append("all are here"))
    monkeypatch.setattr(launcher.torch.cuda, "is_available", lambda: True)
    launcher.run_processes(calls.append, None, "cpu", "main")
    assert calls == ["gloo", 2, "all are here", "main"]


PLACE = Place(num_machines=2, per_machine=2, machine_rank=1, dist_url="", device="cpu")


def ending(codes, claim=None):
    """What `_report` raises for two local processes with these exit codes, of which one has claimed the error."""
    first = FirstError()
    if claim is not None:
        assert first.claim(*claim) and not first.claim(0, "follows from it") and first.known()
    workers = [SimpleNamespace(exitcode=code) for code in codes]
    dead = [rank for rank, code in enumerate(codes) if code]
    with pytest.raises((ProcessDied, SystemExit)) as e:
        launcher._report(PLACE, first, workers, dead)
    return (str(e.value), e.value.exit_code) if isinstance(e.value, ProcessDied) else e.value.code


def test_whose_error_is_reported():
    """Ranks of the second machine of two."""
    died = "Process 3 of 4 died of ValueError: x", 1
    assert ending([1, 1], claim=(1, "ValueError: x")) == died
    assert ending([0, -6], claim=(1, "ValueError: x")) == died  # it also crashed while it ended
    killed = "Process 3 of 4 was killed by SIGSEGV.", 139
    assert (
        ending([1, -signal.SIGSEGV]) == ending([1, -signal.SIGSEGV], claim=(0, "RuntimeError: peer is gone")) == killed
    )
    assert ending([2, 1], claim=(0, "")) == 2  # it has printed its sentence
    assert ending([0, 143]) == 143


def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def test_who_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(launcher, "GRACE", 0.3)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=stubborn), fork.Process(target=sys.exit, args=(3,))]
    for worker in workers:
        worker.start()
    assert launcher._wait_for_failure(workers, FirstError()) == [1]
    launcher._end(workers)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 3]


def test_a_claim_is_noticed_before_its_process_ends(monkeypatch):
    """It may hang while it leaves the process group."""
    monkeypatch.setattr(launcher, "POLL", 0.05)
    worker, first = multiprocessing.get_context("fork").Process(target=stubborn), FirstError()
    worker.start()
    first.claim(0, "ValueError: x")
    assert launcher._wait_for_failure([worker], first) == []
    worker.kill()
    worker.join()


def test_all_end_well():
    workers = [multiprocessing.get_context("fork").Process(target=int) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert launcher._wait_for_failure(workers, FirstError()) is None
