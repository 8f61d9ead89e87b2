"""Numbers recorded from upstream Detectron2, where the recording lies beside the repository."""

import os
import subprocess
import sys

import pytest

from shared import engine
from tests.paths import ROOT, SHARED_FILES

SCRIPT = SHARED_FILES / "golden/golden.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason=f"{SCRIPT} is not here")
def test_golden_numbers():
    """Checkpoint keys, features, losses, gradients, detections, data and AP of whole models."""
    path = str(engine.EMBEDDED_ROOT) if engine.current() == "embedded" else ""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "check", str(SCRIPT.with_name("upstream.json"))],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert "9 passed, 0 failed" in result.stdout, result.stdout[-2000:] + result.stderr[-2000:]
