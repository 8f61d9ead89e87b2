"""Both engines on one machine: checkpoints interchange and give identical detections."""

import json
import os
import subprocess
import sys

import pytest
import torch

from shared import engine
from tests.paths import ROOT
from tests.scenes import make_coco, own_data_flags

pytestmark = pytest.mark.skipif(
    engine.upstream_spec() is None, reason="upstream Detectron2 is not installed: nothing to compare with"
)


def run(choice, *command):
    env = {**os.environ, "DETECTRON2": choice, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def detections(choice, config, weights, images, out):
    flags = ["--config-file", str(config), "--weights", str(weights), "--input", str(images), "--output", str(out)]
    run(choice, "tools/predict.py", *flags, "--score-threshold", "0")
    rows = json.loads((out / "predictions.json").read_text())
    assert len(rows) > 10
    return rows


@pytest.mark.parametrize("writer", ["embedded", "upstream"])
@pytest.mark.parametrize("kind", ["py", "yaml"])
def test_a_run_of_one_engine_is_used_by_the_other(tmp_path, writer, kind):
    """config.yaml and model_final.pth, written by one, read by the other."""
    folder = tmp_path / "run"
    output = f"train.output_dir={folder}" if kind == "py" else f"OUTPUT_DIR={folder}"
    run(writer, "train_net.py", "--config-file", f"tests/tiny/faster_rcnn.{kind}", *own_data_flags(tmp_path), output)
    _, images = make_coco(tmp_path / "new", images=3, seed=5)
    found = {
        choice: detections(choice, folder / "config.yaml", folder / "model_final.pth", images, tmp_path / choice)
        for choice in ("embedded", "upstream")
    }
    assert found["embedded"] == found["upstream"]


def test_both_train_to_the_same_weights(tmp_path):
    data = own_data_flags(tmp_path)
    for choice in ("embedded", "upstream"):
        flags = ["--config-file", "tests/tiny/faster_rcnn.py", *data, f"train.output_dir={tmp_path / choice}"]
        run(choice, "train_net.py", *flags)
    a, b = (torch.load(tmp_path / c / "model_final.pth", weights_only=True)["model"] for c in ("embedded", "upstream"))
    assert list(a) == list(b)
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-5, atol=1e-7)
