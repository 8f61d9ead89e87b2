"""The runs of a comparison: trained in processes of their own, resumed where they stopped, measured.

Every run's folder gets a `run.json` beside what train_net.py writes: what it was called with, how it ended, seconds,
memory, parameters, versions. A folder without one that holds a finished run counts as finished, and not measured.
"""

import contextlib
import fcntl
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path

import torch

from shared import engine
from shared.errors import UserError
from shared.files import whole_file
from shared.training_only import training_only_prefixes
from tools.comparison import measured
from tools.comparison.arms import ROOT, Arm, Plan
from tools.curves import read_metrics
from tools.strip_checkpoint import build_on_cpu

RECORD, RESULTS = "run.json", "inference/results.json"
FINISHED, FAILED, UNFINISHED, MISSING = "finished", "failed", "unfinished", "not run"


# ---------------------------------------------------------------- run.json
def read_record(folder: Path) -> dict:
    """{"status": ..., "attempts": [...], ...} of any folder. UserError: its run.json is broken."""
    file = folder / RECORD
    if file.exists():
        try:
            return json.loads(file.read_text())
        except ValueError as e:
            raise UserError(f"{file} is not valid JSON: {e}; delete it, the run is then taken up without it.") from e
    if (folder / RESULTS).exists() and (folder / "model_final.pth").exists():
        return {"status": FINISHED, "attempts": []}
    if (folder / "config.yaml").exists():
        return {"status": UNFINISHED, "attempts": [{"seconds": None}]}  # begun by something else: its time is unknown
    return {"status": MISSING, "attempts": []}


def write_record(folder: Path, record: dict) -> None:
    with whole_file(str(folder / RECORD)) as f:
        f.write(json.dumps(record, indent=1).encode())


def check_records(plan: Plan) -> None:
    """UserError where a folder holds a run of other arguments: its result is of another experiment."""
    for arm in plan.arms.values():
        for seed in plan.seeds:
            folder, ours = plan.folder(arm, seed), plan.recorded(arm, seed)
            theirs = read_record(folder).get("arguments", ours)
            if theirs != ours:
                odd = [a for a in [*theirs, *ours] if (a in theirs) != (a in ours)] or ["their order"]
                raise UserError(
                    f"{folder} holds a run of other arguments ({', '.join(odd[:4])}): choose another --runs folder, "
                    f"or delete that one."
                )


# ---------------------------------------------------------------- what is measured
def measure(folder: Path, attempts: list[dict]) -> dict:
    """Seconds of all attempts, median seconds of a step, peak memory, parameters."""
    return {
        "seconds": measure_seconds(attempts),
        "seconds_per_step": seconds_per_step(folder),
        **peak_memory(folder, attempts),
        "inference_parameters": inference_parameters(folder),
    }


def measure_seconds(attempts: list[dict]) -> float | None:
    """Of all attempts together; None where one of them is not known."""
    seconds = [attempt.get("seconds") for attempt in attempts]
    return sum(seconds) if seconds and None not in seconds else None


def seconds_per_step(folder: Path) -> float | None:
    try:
        times = [record["time"] for record in read_metrics(str(folder)).values() if "time" in record]
    except UserError:
        return None
    return statistics.median(times) if times else None


def peak_memory(folder: Path, attempts: list[dict]) -> dict:
    """In MiB: of the GPU, as the log has it (metrics.json does not), else of the largest process."""
    log = folder / "log.txt"
    gpu = [int(m) for m in re.findall(r"max_mem: (\d+)M", log.read_text(errors="replace"))] if log.exists() else []
    process = [a["peak_memory_mib"] for a in attempts if a.get("peak_memory_mib") is not None]
    peak = max(gpu) if gpu else max(process, default=None)
    return {"peak_memory_mib": peak, "memory_of": "GPU" if gpu else "process"}


def inference_parameters(folder: Path) -> int:
    """Numbers that the model learns and that inference needs."""
    model = build_on_cpu(str(folder / "config.yaml"), [])
    spare = tuple(training_only_prefixes(model))
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(spare))


def machine() -> dict[str, str]:
    """What the numbers depend on beside the config."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        cpu = found[1]
    facts = dict(line.split(maxsplit=1) for line in engine.describe().splitlines())
    facts["engine"], facts["python"] = (facts[key].partition(" (")[0] for key in ("engine", "python"))
    del facts["threads"]
    device = facts.pop("device")
    return {"cpu": f"{cpu}, {os.cpu_count()} cores", "gpu": "none" if device == "cpu" else device, **facts}


# ---------------------------------------------------------------- training
@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """UserError where another command holds the folder of runs; the lock ends with its process."""
    with open(folder / ".lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"Another tools/compare.py trains in {folder}: wait for it, or end it.") from e
        yield


class Runner:
    """Trains what is not finished, `jobs` at a time. say: takes a line for the person who waits."""

    def __init__(self, plan: Plan, jobs: int, say: Callable[[str], None] = print):
        self.plan, self.jobs, self.say = plan, jobs, say
        self.total, self.ended = len(plan.arms) * len(plan.seeds), 0
        self._children: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self) -> None:
        """Train all; KeyboardInterrupt, of the signal's number where it was SIGTERM, once the children have ended."""
        self.plan.runs.mkdir(parents=True, exist_ok=True)
        with alone_in(self.plan.runs):
            self._run()

    def _run(self) -> None:
        before = signal.signal(signal.SIGTERM, _interrupt)
        pool = ThreadPoolExecutor(self.jobs)
        try:
            runs = [pool.submit(self.train, arm, seed) for seed in self.plan.seeds for arm in self.plan.arms.values()]
            wait(runs, return_when=FIRST_EXCEPTION)
            for run in runs:
                if run.done():
                    run.result()
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGTERM, before)

    def train(self, arm: Arm, seed: int) -> dict:
        """One run, unless it is finished. Returns its record; a failure is in it, and no exception."""
        folder = self.plan.folder(arm, seed)
        record = read_record(folder)
        if record["status"] == FINISHED:
            return self._tell(arm, seed, "finished before")
        if self._stopped:
            return record
        folder.mkdir(parents=True, exist_ok=True)
        attempt = {"started": _now(), "seconds": None}
        record = {"arm": arm.name, "seed": seed, "arguments": self.plan.recorded(arm, seed), **record}
        record.update(status=UNFINISHED, machine=machine(), jobs=self.jobs, threads=self._threads(), error=None)
        record["attempts"] = [*record["attempts"], attempt]
        write_record(folder, record)
        log = folder.parent / f"{seed}.txt"
        logged = log.stat().st_size if log.exists() else 0
        self.say(f"{arm.name}, seed {seed}: training, log {log}")
        attempt.update(self._measured(arm, seed, folder, log))
        if attempt.get("exit_code") == 0:
            try:
                record.update(measure(folder, record["attempts"]), status=FINISHED)
            except UserError as e:
                record.update(status=FAILED, error=str(e))
        elif not self._stopped:
            record.update(status=FAILED, error=failure(log, logged, attempt.get("exit_code")))
        record["ended"] = _now()
        write_record(folder, record)
        end = f"failed: {record['error']}" if record["status"] == FAILED else record["status"]
        return self._tell(arm, seed, f"{end}, {attempt['seconds'] or 0:.0f} s", record)

    def _tell(self, arm: Arm, seed: int, end: str, record: dict | None = None) -> dict:
        with self._lock:
            self.ended += 1
            self.say(f"[{self.ended}/{self.total}] {arm.name}, seed {seed}: {end}")
        return record or read_record(self.plan.folder(arm, seed))

    def _threads(self) -> str:
        return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // self.jobs))

    def _measured(self, arm: Arm, seed: int, folder: Path, log: Path) -> dict:
        """Call train_net.py; {} where this process was told to stop before it began."""
        command = [sys.executable, str(ROOT / "train_net.py"), *self.plan.arguments(arm, seed)]
        command += ["--resume"] if (folder / "config.yaml").exists() else []
        command += [f"{arm.keys.output_dir}={folder}", f"{arm.keys.seed}={seed}"]
        output = folder / "attempt.json"
        output.unlink(missing_ok=True)
        with open(log, "a") as f:
            with self._lock:  # no child is started once _stop has gone through them
                if self._stopped:
                    return {}
                child = subprocess.Popen(
                    [sys.executable, measured.__file__, str(output), *command],
                    stdin=subprocess.PIPE,
                    stdout=f,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": self._threads()},
                    start_new_session=True,  # a Ctrl-C is for this process, which tells its children
                )
                self._children.add(child)
            child.wait()
            child.stdin.close()
            self._children.discard(child)
        if not output.exists():
            return {"exit_code": child.returncode}
        found = json.loads(output.read_text())
        output.unlink()
        return found

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for child in list(self._children):
                child.stdin.close()


def _interrupt(signum: int, _) -> None:
    raise KeyboardInterrupt(signum)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def failure(log: Path, start: int, exit_code: int | None) -> str:
    """One sentence: train_net.py's own where it has one, else the log's last line, or the signal. start: byte."""
    if exit_code is not None and exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}" + (
            ", as the system does when memory is short" if exit_code == -signal.SIGKILL else ""
        )
    written = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    sentence = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    return sentence.removeprefix("error: ") or (lines[-1] if lines else f"exit code {exit_code}")


def cuda_override(device_key: str) -> list[str]:
    """What lets a run of a GPU be looked at on a machine without one."""
    return [] if torch.cuda.is_available() else [f"{device_key}=cpu"]
