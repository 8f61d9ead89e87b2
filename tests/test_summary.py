"""tools/summary.py: what `make quickstart` says at its end."""

import json

from tools.summary import summary


def test_names_the_figures_and_what_is_there(tmp_path):
    (tmp_path / "inference").mkdir()
    results = {"bbox": {"AP": 12.34, "AP50": 56.78, "AP-red": 1.0}}
    (tmp_path / "inference/results.json").write_text(json.dumps(results))
    (tmp_path / "model_final.pth").write_bytes(b"")
    lines = summary(tmp_path).splitlines()
    assert lines[0].split() == ["bbox", "AP", "12.3", "AP50", "56.8"]
    assert lines[1].split() == ["weights", str(tmp_path / "model_final.pth")]
    assert len(lines) == 2  # no log, no pictures
