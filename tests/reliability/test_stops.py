"""Signals and full disks end a run with one clear line, and --resume makes it the run that was never stopped."""

import ctypes
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import train_net
from detectron2.utils import comm
from shared.training import loop
from shared.training.hooks import SeedEachIteration
from shared.training.stops import SAME_STOP, StopSignals
from tests.paths import ROOT
from tests.processes import ENVIRONMENT, run_forked

from .runs import Training, assert_same_run, make_config, metrics_of, read, train


def made_by(train, folder):
    """Arguments of a run, and the run."""
    arguments = make_config("retinanet", folder, "train.max_iter=12")
    train(arguments, folder / "run")
    return arguments, folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made_by(train, tmp_path_factory.mktemp("whole"))


def resumes(whole, run):
    arguments, expected = whole
    train(arguments, run, "--resume")
    assert_same_run(expected, run)


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize(
    "signum, code",
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_iteration_and_saves(whole, tmp_path, signum, code):
    training = Training(whole[0], tmp_path / "run")
    training.wait_for(2)
    training.send(signum)
    assert training.end() == code, training.errors()
    name = signal.Signals(signum).name
    match = re.fullmatch(rf"stopped: {name}: --resume goes on from iteration (\d+)\.", training.last_line())
    assert match, training.errors()
    assert "Traceback" not in training.errors() and f"{name}: the iteration is brought" in training.errors()
    assert read(tmp_path / "run", f"model_{int(match[1]) - 1:07d}.pth")["iteration"] == int(match[1]) - 1
    resumes(whole, tmp_path / "run")


def test_signals_to_a_whole_group_leave_the_workers_to_their_process(whole, tmp_path):
    """As a terminal's Ctrl-C and a cluster's scheduler send them."""
    training = Training(whole[0], tmp_path / "run", "dataloader.train.num_workers=2", before=lambda: os.setpgid(0, 0))
    training.wait_for(2)
    os.killpg(training.process.pid, signal.SIGTERM)
    os.killpg(training.process.pid, signal.SIGINT)  # within SAME_STOP: no second one
    assert training.end() in (143, 130), training.errors()  # Python looks at both at once
    assert "--resume goes on from iteration" in training.last_line()
    resumes(whole, tmp_path / "run")


def train_alone(arguments, run, *more) -> None:
    """In a process of its own: what this one has computed before may change how the last bits are rounded."""
    command = [sys.executable, "train_net.py", *arguments, f"train.output_dir={run}", *more]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def whole_alone(tmp_path_factory):
    return made_by(train_alone, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal(whole_alone, tmp_path, ignored):
    """It sends SIGHUP, and log, progress bar and prints have nowhere to go. ignored: as nohup has SIGHUP."""
    (arguments, expected), run = whole_alone, tmp_path / "run"

    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    master, slave = pty.openpty()
    os.set_blocking(master, False)
    command = [sys.executable, "train_net.py", *arguments, f"train.output_dir={run}"]
    streams = dict(stdin=slave, stdout=slave, stderr=slave)
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, preexec_fn=take_terminal, **streams
    )
    os.close(slave)
    shown = b""
    while not metrics_of(run) and process.poll() is None:
        try:
            shown += os.read(master, 2**16)
        except OSError:  # nothing new
            time.sleep(0.01)
    os.close(master)
    assert process.wait(300) == (0 if ignored else 129), shown[-3000:]
    log = (run / "log.txt").read_text()
    assert "Traceback" not in log, log[-3000:]
    if not ignored:
        assert int((run / "last_checkpoint").read_text()[len("model_") : -len(".pth")]) not in (4, 9)  # not a period's
        train_alone(arguments, run, "--resume")
    assert_same_run(expected, run)


def test_a_reader_that_is_gone():
    program = """if True:
        import sys
        from shared.training.stops import outliving_terminal
        with outliving_terminal():
            print("lost")
            sys.exit(3)"""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, b"")


def test_a_later_signal_stops_at_once(monkeypatch):
    ended, now = [], iter([10.0, 10.0 + SAME_STOP / 2, 10.0 + SAME_STOP * 1.5])
    monkeypatch.setattr("shared.training.stops.end_by", ended.append)
    monkeypatch.setattr("shared.training.stops.time.monotonic", lambda: next(now))
    with StopSignals(announce=False) as stop:
        for expected in ([], [], [signal.SIGTERM]):
            os.kill(os.getpid(), signal.SIGTERM)
            assert ended == expected and stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def evaluate_slowly(marker):
    """Instead of evaluating, say so and wait."""

    def wait(*args):
        marker.touch()
        time.sleep(600)

    loop.inference_on_dataset = wait


def test_a_signal_breaks_an_evaluation_off(whole, tmp_path):
    run = tmp_path / "run"
    training = Training(whole[0], run, before=lambda: evaluate_slowly(tmp_path / "evaluating"))
    while not (tmp_path / "evaluating").exists() and training.process.is_alive():
        time.sleep(0.01)
    training.send(signal.SIGTERM)
    assert training.end() == 143, training.errors()
    last = "stopped: SIGTERM: the evaluation was broken off. --resume goes on from iteration 8."
    assert training.last_line() == last
    resumes(whole, run)


def stop_in_the_evaluation(arguments: list[str], waiting: bool) -> None:
    """In each of two processes. waiting: whether the main one waits for the other one's results at that moment."""

    def evaluate(*args):
        pids = comm.all_gather(os.getpid())
        if comm.is_main_process():
            comm.synchronize() if waiting else time.sleep(600)
        time.sleep(1)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        time.sleep(600)

    loop.inference_on_dataset = evaluate
    with pytest.raises(SystemExit) as e:
        train_net.cli(arguments)
    assert e.value.code == 143


@pytest.mark.parametrize("waiting", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_signal_breaks_the_evaluation_of_two_processes_off(tmp_path, waiting):
    """Nothing is lost: the main one saves what all had before it."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=12", "dataloader.train.total_batch_size=4")
    logs: Path = tmp_path / "logs"
    logs.mkdir()
    whole, parts = ([*arguments, "--resume", f"train.output_dir={tmp_path}/{name}"] for name in ("whole", "parts"))
    run_forked(2, train_net.cli, logs, whole)
    run_forked(2, stop_in_the_evaluation, logs, parts, waiting)
    last = "stopped: SIGTERM: the evaluation was broken off. --resume goes on from iteration 8."
    assert last in (logs / "2_0.log").read_text().splitlines() and "stopped" not in (logs / "2_1.log").read_text()
    run_forked(2, train_net.cli, logs, parts)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_evaluation_that_is_known_is_not_repeated(whole, tmp_path):
    """Killed after the evaluation of a checkpoint's iteration: the resumed run takes its results from the file."""
    run, settings = tmp_path / "run", ["train.checkpointer.period=8"]
    train(whole[0], run, *settings, "train.max_iter=9")
    for file in ("model_final.pth", "inference/evaluated.json"):
        (run / file).unlink()
    (run / "last_checkpoint").write_text("model_0000007.pth")
    row = next(row for row in metrics_of(run) if "bbox/AP" in row)
    results = {"bbox": {key.removeprefix("bbox/"): 7.0 for key in row if key.startswith("bbox/")}}
    (run / "inference/evaluated.json").write_text(f'{{"iteration": 7, "results": {results}}}'.replace("'", '"'))
    train(whole[0], run, *settings, "--resume", "train.max_iter=9")
    assert [row["bbox/AP"] for row in metrics_of(run) if row["iteration"] == 7 and "bbox/AP" in row] == [7.0]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_two_processes_stop_and_go_on(tmp_path, launcher):
    """One line, by the main one. The other one's own batch norm statistics and loss normalizer are kept as well."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=14", "dataloader.train.total_batch_size=4")
    script = [sys.executable, "train_net.py", *arguments, "--num-gpus", "2", "--dist-url", "auto"]
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        script = [sys.executable, *torchrun, "train_net.py", *arguments]
    options = dict(cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    options["stdout"] = subprocess.DEVNULL
    done = subprocess.run([*script, f"train.output_dir={tmp_path}/whole"], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "parts"
    process = subprocess.Popen([*script, f"train.output_dir={run}", "--resume"], **options)
    while not any(row["iteration"] >= 2 for row in metrics_of(run)) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    stopped = [line for line in errors.splitlines() if line.startswith("stopped: ")]
    assert len(stopped) == 1 and "SIGTERM: --resume goes on from iteration" in stopped[0], errors[-3000:]
    if launcher == "launch":
        assert process.returncode == 143 and errors.strip().splitlines()[-1] == stopped[0]
    assert len(read(run, (run / "last_checkpoint").read_text())["run"]["processes"]) == 2
    done = subprocess.run([*script, f"train.output_dir={run}", "--resume"], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "whole", run)


# ---------------------------------------------------------------- disks
@pytest.fixture
def disk(tmp_path):
    """A file system of 64 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def at_step(iteration: int, action):
    """Do something before that iteration."""
    before_step = SeedEachIteration.before_step

    def with_action(self):
        if self.trainer.iter == iteration:
            action()
        before_step(self)

    SeedEachIteration.before_step = with_action


def fill(file):
    with open(file, "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"0" * 4096)
        except OSError:
            return


@pytest.mark.parametrize(
    "iteration, what",
    [(7, "a checkpoint or a line of metrics"), pytest.param(0, "the first line", marks=pytest.mark.slow)],
)
def test_full_disk(whole, disk, iteration, what):
    ballast = disk / "ballast"
    training = Training(whole[0], disk / "run", before=lambda: at_step(iteration, lambda: fill(ballast)))
    assert training.end() == 2, training.errors()
    begins = "--resume goes on from iteration 5."
    if iteration == 0:
        begins = "No checkpoint was written yet: --resume begins anew."
    last = training.last_line()
    assert last.startswith("error: ") and last.endswith(begins) and "the disk is full: free some space" in last
    assert "Traceback" not in training.errors(), training.errors()
    ballast.unlink()
    resumes(whole, disk / "run")


def obey_permissions():
    """Root writes wherever it likes, unless it gives up the right to."""
    if os.geteuid() == 0:
        libc, header = ctypes.CDLL(None, use_errno=True), struct.pack("Ii", 0x20080522, 0)  # version 3, this process
        data = ctypes.create_string_buffer(24)
        assert libc.capget(header, data) == 0
        words = list(struct.unpack("6I", data.raw))
        words[0] &= ~0b110  # effective, without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert libc.capset(header, struct.pack("6I", *words)) == 0, os.strerror(ctypes.get_errno())


def test_folder_that_becomes_read_only(whole, tmp_path):
    run = tmp_path / "run"

    def prepare():
        obey_permissions()
        at_step(7, lambda: run.chmod(0o555))

    training = Training(whole[0], run, before=prepare)
    code = training.end()
    run.chmod(0o755)
    assert code == 2, training.errors()
    assert re.fullmatch(
        rf"error: {run}/\S+ cannot be written \(Permission denied\): it may not be written to: make it writable\. "
        r"--resume goes on from iteration 5\.",
        training.last_line(),
    ), training.errors()
    assert "Traceback" not in training.errors()
    resumes(whole, run)
