"""tools/curves.py: sums, resumed runs, smoothing, pictures."""

import json

import pytest
from PIL import Image

from shared.errors import UserError
from tools import curves


def write(folder, rows, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return str(folder)


ROWS = [
    {"iteration": 0, "loss_a": 4.0, "loss_b": 1.0, "x/loss_a": 8.0, "lr": 0.1, "note": "text"},
    {"iteration": 10, "loss_a": 3.0, "loss_b": 1.0, "x/loss_a": 6.0, "lr": 0.1},
    {"iteration": 20, "loss_a": 1.0, "loss_b": 0.5, "x/loss_a": 2.0, "lr": 0.1},
    {"iteration": 20, "bbox/AP": 7.0},
]


def test_sums_patterns_and_missing_points(tmp_path):
    metrics = curves.read_metrics(write(tmp_path / "run", ROWS))
    assert curves.curve(metrics, ["loss_a"]) == ([0, 10, 20], [4.0, 3.0, 1.0])
    assert curves.curve(metrics, ["loss_a", "loss_b"]) == ([0, 10, 20], [5.0, 4.0, 1.5])
    assert curves.curve(metrics, ["loss_*"]) == ([0, 10, 20], [5.0, 4.0, 1.5])
    assert curves.curve(metrics, ["loss_a", "loss_*"])[1] == [5.0, 4.0, 1.5]  # no key twice
    assert curves.curve(metrics, ["*loss_a"])[1] == [12.0, 9.0, 3.0]
    assert curves.curve(metrics, ["bbox/AP"]) == ([20], [7.0])
    assert curves.curve(metrics, ["bbox/AP", "lr"]) == ([20], [7.1])
    # means of the last two: 4, (4 + 3) / 2, (3 + 1) / 2
    assert curves.curve(metrics, ["loss_a"], smooth=2)[1] == [4.0, 3.5, 2.0]
    with pytest.raises(UserError, match="No scalar is called 'los_a'; did you mean loss_a"):
        curves.curve(metrics, ["los_a"])
    with pytest.raises(UserError, match="called 'note'"):  # no number
        curves.curve(metrics, ["note"])


def test_resumed_run_counts_its_later_values_once(tmp_path):
    rows = [{"iteration": i, "loss": v} for i, v in ((0, 5.0), (10, 4.0), (20, 3.0), (10, 9.0), (20, 8.0), (30, 7.0))]
    metrics = curves.read_metrics(write(tmp_path / "run", rows, tail='{"iteration": 40, "lo'))
    assert curves.curve(metrics, ["loss"]) == ([0, 10, 20, 30], [5.0, 9.0, 8.0, 7.0])


def test_scalar_grammar():
    assert curves.parse_scalar("a") == ("a", ["a"])
    assert curves.parse_scalar("L1=a + b*") == ("L1", ["a", "b*"])
    for text in ("=a", "L1=", "a++b"):
        with pytest.raises(UserError, match="write KEY, or NAME=KEY"):
            curves.parse_scalar(text)


def test_command(tmp_path, capsys):
    one, two = write(tmp_path / "one", ROWS), write(tmp_path / "two", ROWS[:2])
    out = tmp_path / "curves"
    curves.main(["--run", one, two, "--scalars", "sum=loss_a+loss_b", "lr", "x/loss_a", "loss_b", "--output", str(out)])
    assert Image.open(out / "curves.png").size == (5 * 3 * 120, int(3.6 * 2 * 120))  # four panels in rows of three
    content = json.loads((out / "curves.json").read_text())
    assert list(content) == ["sum", "lr", "x/loss_a", "loss_b"]
    assert content["sum"] == {one: [[0, 10, 20], [5.0, 4.0, 1.5]], two: [[0, 10], [5.0, 4.0]]}
    printed = capsys.readouterr().out
    assert f"sum  {one}: 5 at 0, 1.5 at 20" in printed and "4 panel(s) of 2 run(s)" in printed
    curves.main(["--run", f"{one}/metrics.json"])
    assert capsys.readouterr().out.strip().endswith(": bbox/AP, loss_a, loss_b, lr, x/loss_a")


def test_bad_input(tmp_path, capsys):
    run = write(tmp_path / "run", ROWS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("[1, 2]\n")
    out = str(tmp_path / "out")
    for flags, sentence in (
        (["--run", str(tmp_path / "empty"), "--scalars", "lr", "--output", out], "has no readable metrics.json"),
        (["--run", str(tmp_path / "other.json"), "--scalars", "lr", "--output", out], "holds no record"),
        (["--run", run, "--scalars", "lrr", "--output", out], "did you mean lr"),
        (["--run", run, "--scalars", "lr"], "add --output"),
        (["--run", run, "--scalars", "lr", "--output", out, "--smooth", "0"], "--smooth must be at least 1"),
        (["--run", run, "--scalars", "lr", "--output", str(tmp_path)], "holds something already"),
    ):
        with pytest.raises(SystemExit) as e:
            curves.main(flags)
        assert e.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
