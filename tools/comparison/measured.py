"""Run a command and write how long it took and how much memory it had: `python measured.py OUT.json COMMAND...`.

A process between tools/compare.py and train_net.py, for two reasons. Linux counts the memory of the process that starts
a child as the child's own (ru_maxrss survives exec): the starting process must be small, so nothing is imported here.
And the standard input is a pipe from tools/compare.py: when it ends, by an interrupt or since that process was killed,
so does the training.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 60  # between SIGTERM and SIGKILL: enough to end an iteration and write a checkpoint


def main(output: str, command: list[str]) -> int:
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, args=(process.pid,), daemon=True).start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    record = {
        "seconds": time.monotonic() - start,
        "peak_memory_mib": usage.ru_maxrss / unit,
        "exit_code": process.returncode,
    }
    with open(output + ".new", "w") as f:
        json.dump(record, f)
    os.replace(output + ".new", output)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end_with_parent(pid: int) -> None:
    """When standard input ends: SIGTERM for the command, which ends its own children, and SIGKILL if it stays."""
    while os.read(0, 1):
        pass
    os.kill(pid, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
