"""Runs a script in two processes of one machine."""

import os
import subprocess
import sys

from tests.paths import ROOT

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run_in_two(script: str, *arguments: str) -> None:
    """Both must end well; a hang ends in the timeout."""
    done = subprocess.run(
        [sys.executable, *LAUNCHER, script, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
