"""The table of benchmarks/compare.py: means and spreads over seeds, differences paired by seed."""

import pytest

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
