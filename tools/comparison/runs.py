"""The runs of a comparison: trained in processes of their own, resumed where they stopped, measured.

Every run's folder gets a `run.json` beside what train_net.py writes: what it was called with, how it ended, seconds,
memory, parameters, versions. A folder without one that holds a finished run counts as finished, and not measured.
"""

import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path

import torch

from shared import engine
from shared.errors import UserError
from shared.files import whole_file
from shared.training_only import training_only_prefixes
from tools.comparison import measured
from tools.comparison.arms import ROOT, Arm, Plan, shown
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
        except (OSError, ValueError) as e:
            raise UserError(f"{file} cannot be read: {e}; delete it, the run is then taken up without it.") from e
    if (folder / RESULTS).exists() and (folder / "model_final.pth").exists():
        return {"status": FINISHED, "attempts": []}
    if (folder / "config.yaml").exists():
        return {"status": UNFINISHED, "attempts": [{"seconds": None}]}  # begun by something else: its time is unknown
    return {"status": MISSING, "attempts": []}


def write_record(folder: Path, record: dict) -> None:
    with whole_file(str(folder / RECORD)) as f:
        f.write(json.dumps(record, indent=1).encode())


def check_records(plan: Plan) -> None:
    """UserError where a run's folder is a file, or holds a run of other arguments or of the config before a change: its
    result is of another experiment."""
    for arm in plan.arms.values():
        for seed in plan.seeds:
            folder = plan.folder(arm, seed)
            if file := next((f for f in (folder.parent, folder) if f.exists() and not f.is_dir()), None):
                raise UserError(f"{file} is a file, where runs of arm {arm.name} belong: move it, or rename the arm.")
            if difference := _difference(plan, arm, seed, read_record(folder)):
                raise UserError(f"{folder} holds a run {difference}: choose another --runs folder, or delete that one.")


def _difference(plan: Plan, arm: Arm, seed: int, record: dict) -> str:
    """What a recorded run has that the plan's has not; "" where they are the same as far as the record tells."""
    ours, resolved = plan.recorded(arm, seed), plan.hashes.get((arm.name, seed))
    theirs = record.get("arguments", ours)
    if theirs != ours:
        odd = [a for a in [*theirs, *ours] if (a in theirs) != (a in ours)] or ["their order"]
        return f"of other arguments ({', '.join(odd[:4])})"
    if record.get("config_hash", resolved) != resolved:
        return f"of another state of {shown(arm.config)}: the config, or what it is made of, has changed since"
    return ""


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
class Runner:
    """Trains what is not finished, `jobs` at a time. say: takes a line for the person who waits."""

    def __init__(self, plan: Plan, jobs: int, say: Callable[[str], None] = print):
        self.plan, self.jobs, self.say = plan, jobs, say
        self.total, self.ended = len(plan.arms) * len(plan.seeds), 0
        self._children: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self) -> None:
        """Train all; KeyboardInterrupt, of the signal's number where it was SIGTERM, once the children have ended."""
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
        record = {"arm": arm.name, "seed": seed, "arguments": self.plan.recorded(arm, seed), **record}
        if resolved := self.plan.hashes.get((arm.name, seed)):
            record["config_hash"] = resolved
        record.update(status=UNFINISHED, machine=machine(), jobs=self.jobs, threads=self._threads(), error=None)
        record["attempts"] = [*record["attempts"], {"started": _now(), "seconds": None}]
        try:
            self._train(arm, seed, folder, record)
        except OSError as e:  # of this run: the others go on
            record.update(status=FAILED, error=f"{e.filename or folder}: {e.strerror or e}")
        record["ended"] = _now()
        with contextlib.suppress(OSError):
            write_record(folder, record)
        end = f"failed: {record['error']}" if record["status"] == FAILED else record["status"]
        return self._tell(arm, seed, f"{end}, {record['attempts'][-1]['seconds'] or 0:.0f} s", record)

    def _train(self, arm: Arm, seed: int, folder: Path, record: dict) -> None:
        """Call train_net.py; how it ended goes into the record and its last attempt."""
        attempt = record["attempts"][-1]
        folder.mkdir(parents=True, exist_ok=True)
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

    def _tell(self, arm: Arm, seed: int, end: str, record: dict | None = None) -> dict:
        with self._lock:
            self.ended += 1
            self.say(f"[{self.ended}/{self.total}] {arm.name}, seed {seed}: {end}")
        return record or read_record(self.plan.folder(arm, seed))

    def _threads(self) -> str:
        return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // self.jobs))

    def _measured(self, arm: Arm, seed: int, folder: Path, log: Path) -> dict:
        """Seconds, memory and exit code of train_net.py; {} where this process was told to stop before it began."""
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
