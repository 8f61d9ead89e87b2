"""The table of benchmarks/compare.py: means and spreads over seeds, differences paired by seed."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import compare
from benchmarks.compare import parse_arm, table

RESULTS = {"plain": [{"AP": 10.0, "x": 1}, {"AP": 14.0, "x": 1}], "ours": [{"AP": 11.0}, {"AP": 17.0}]}


def test_table_by_hand():
    """Standard deviation of (10, 14) is sqrt(8) = 2.83; the differences are 1 and 3: mean 2, sqrt(2) = 1.41."""
    lines = table(RESULTS, ["AP", "x"])  # x is not in every run
    assert lines[0] == "| arm | AP | AP of each seed |"
    assert lines[2:] == [
        "| plain | 12.00 ± 2.83 | 10.00, 14.00 |",
        "| ours | 14.00 ± 4.24 | 11.00, 17.00 |",
        "| ours minus plain | 2.00 ± 1.41 | |",
    ]


def test_arm():
    name, arguments = parse_arm("plain=configs/quickstart.py,train.max_iter=5")
    assert name == "plain" and arguments[1].endswith("configs/quickstart.py") and arguments[2:] == ["train.max_iter=5"]
    with pytest.raises(SystemExit, match="write NAME=CONFIG with an existing config file"):
        parse_arm("plain=nothing.py")


def test_every_run_has_its_own_seed(tmp_path, monkeypatch):
    """In train.seed, in its folder and wherever an argument says {seed}; a finished run is not trained again."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        results = tmp_path / command[-2].split("=")[1] / "inference" / "results.json"
        results.parent.mkdir(parents=True)
        results.write_text(json.dumps({"bbox": {"AP": 1.0}}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(compare.subprocess, "run", run)
    arguments = ["--config-file", "a.py", "train.init_checkpoint=runs/{seed}/model_final.pth"]
    for seed in (3, 3, 4):
        found = compare.train(arguments, ["train.max_iter=5"], tmp_path / "arm" / str(seed), seed, threads=1)
        assert found == {"bbox": {"AP": 1.0}}
    assert [c[4:-2] for c in commands] == [
        [f"train.init_checkpoint=runs/{s}/model_final.pth", "train.max_iter=5"] for s in (3, 4)
    ]
    assert [c[-1] for c in commands] == ["train.seed=3", "train.seed=4"]
    assert [c[-2] for c in commands] == [f"train.output_dir={tmp_path / 'arm' / s}" for s in "34"]
