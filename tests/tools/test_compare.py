"""tools/compare.py: arms and hosts, numbers by hand, pictures."""

import json
import math
from pathlib import Path

import pytest
import torch

from detectron2.structures import Boxes, Instances
from shared.errors import UserError
from tests.paths import ROOT
from tests.scenes import make_coco, own_data_flags
from tools import compare
from tools.comparison import arms, examples, figures, results
from tools.comparison.results import Row, difference, markdown, table_rows

PLAIN, YAML, DENSE = (str(ROOT / "tests/tiny" / n) for n in ("faster_rcnn.py", "faster_rcnn.yaml", "retinanet.py"))


def fails(capsys, *argv) -> str:
    """Run, expect exit code 2 and one sentence on stderr; return it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        compare.main([str(a) for a in argv])
    assert e.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------- arms
def test_arm():
    arm = arms.parse_arm("lip.1@plain=tests/tiny/faster_rcnn.py,model.sizes=(8,16),+train.x=[a,b],train.max_iter=5")
    assert (arm.name, arm.host, arm.config) == ("lip.1", "plain", Path(PLAIN))
    assert arm.overrides == ("model.sizes=(8,16)", "+train.x=[a,b]", "train.max_iter=5")
    assert arms.parse_arm(f"a={YAML}").host is None
    methods = ("--with=lip", "--with=msfm", "x=(1,2)", "--skip-bad-records", "y=1")
    for written in ("--with=lip,--with=msfm", "--with=lip,msfm"):
        assert arms.parse_arm(f"a={PLAIN},{written},x=(1,2),--skip-bad-records,y=1").overrides == methods
    assert arms.parse_arm(f"a={PLAIN},--skip-bad-records").overrides == ("--skip-bad-records",)
    for text, sentence in (
        ("plain", "write NAME=CONFIG or NAME@HOST=CONFIG"),
        (f"={PLAIN}", "write NAME=CONFIG"),
        (f"a@={PLAIN}", "write NAME=CONFIG"),
        (f"../a={PLAIN}", "a name is a folder's name"),
        ("a=tests/tiny/faster_rcn.py", "does not exist; did you mean faster_rcnn.py"),
        ("a=nope/setup.py", r"config file 'nope/setup.py' does not exist\.$"),
        (f"report.html={PLAIN}", "are of the tool's own files"),
        (f"compare.json={PLAIN}", "are of the tool's own files"),
    ):
        with pytest.raises(UserError, match=sentence):
            arms.parse_arm(text)


def hosts_of(*texts):
    return {n: a.host for n, a in arms.with_hosts([arms.parse_arm(f"{t}={PLAIN}") for t in texts]).items()}


def test_hosts():
    assert hosts_of("a", "b", "c") == {"a": None, "b": "a", "c": "a"}
    assert hosts_of("a", "x@b", "b", "y@b", "c") == {"a": None, "x": "b", "b": None, "y": "b", "c": "a"}
    assert hosts_of("x@a", "a", "y@x") == {"x": "a", "a": None, "y": "x"}
    assert hosts_of("x@b", "b", "c") == {"x": "b", "b": None, "c": "b"}
    for texts, sentence in (
        (("plain", "x@plian"), "there is no arm 'plian'; did you mean plain"),
        (("a", "x@x"), "cannot be its own host"),
        (("a", "b", "a"), "--arm a is given twice"),
    ):
        with pytest.raises(UserError, match=sentence):
            hosts_of(*texts)


def plan_of(runs, *texts, seeds=(0,), **more):
    return arms.Plan(arms.with_hosts([arms.parse_arm(t) for t in texts]), tuple(seeds), Path(runs), **more)


def test_arguments_of_either_kind_of_config(tmp_path):
    common = ("--train-json", "a.json", "train.init_checkpoint=runs/{seed}/w.pth")
    plan = plan_of(tmp_path, f"a={PLAIN},x=1", f"b={YAML}", common=common, iterations=7, eval_period=3)
    a, b = plan.arms.values()
    shared = ["--train-json", "a.json", "train.init_checkpoint=runs/4/w.pth"]
    assert plan.arguments(a, 4) == ["--config-file", PLAIN, "x=1", *shared, "train.max_iter=7", "train.eval_period=3"]
    assert plan.arguments(b, 4) == ["--config-file", YAML, *shared, "SOLVER.MAX_ITER=7", "TEST.EVAL_PERIOD=3"]
    assert plan.recorded(a, 4)[:3] == ["--config-file", "tests/tiny/faster_rcnn.py", "x=1"]
    assert plan.groups() == {"a": ["b"]}
    bare = plan_of(tmp_path, f"a={PLAIN}")
    assert bare.arguments(bare.arms["a"], 0) == ["--config-file", PLAIN]  # the config's own budget


@pytest.mark.parametrize("config, key", [(PLAIN, "train.max_iter"), (YAML, "SOLVER.MAX_ITER")])
def test_hash_of_what_a_config_resolves_to(tmp_path, monkeypatch, config, key):
    """The same for all seeds and in every copy of the repository, another where a value differs."""

    def hashes(copy, *common, seeds=(0, 1)):
        monkeypatch.setattr(arms, "ROOT", tmp_path / copy)
        data = [flag.replace(str(tmp_path), str(tmp_path / copy)) for flag in flags]
        plan = arms.check(plan_of(tmp_path / copy, f"a={config}", seeds=seeds, common=(*data, *common)))
        return [plan.hashes["a", seed] for seed in seeds]

    flags = own_data_flags(tmp_path)
    for copy in ("one", "a_copy_of_the_repository_with_a_name_that_would_wrap_a_line" * 2):
        own_data_flags(tmp_path / copy)
    first = hashes("one")
    assert first[0] == first[1] == hashes(copy)[0] == hashes("one", seeds=(5,))[0]
    assert hashes("one", f"{key}=5")[0] != first[0]
    own = hashes("one", f"{key}=1{{seed}}")
    assert len({*first, *own}) == 3 and hashes("one", f"{key}=1{{seed}}", seeds=(1,)) == own[1:]
    (tmp_path / "one/other").mkdir()
    (tmp_path / "one/other/val.json").write_bytes((tmp_path / "one/val/annotations.json").read_bytes())
    flags[5] = str(tmp_path / "other/val.json")
    assert hashes("one")[0] != first[0]


def test_bad_input_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare.Runner, "run", lambda self: pytest.fail("trained"))
    runs = tmp_path / "runs"
    data = own_data_flags(tmp_path)
    a, b = ["--runs", runs, "--arm", f"a={PLAIN}"], ["--arm", f"b={DENSE}"]
    (tmp_path / "notes.md").write_text("my own")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a").write_text("my own")
    for flags, sentence in (
        (["--runs", runs, "--", *data], "No arm: add --arm NAME=CONFIG"),
        ([*a, "--seeds", "0", "0", "--", *data], "--seeds 0 0"),
        ([*a, "--iterations", "0", "--", *data], "--iterations must be at least 1, got 0"),
        ([*a, "--jobs", "0", "--", *data], "--jobs must be at least 1"),
        ([*a, *b, "--", *data, "train.max_itre=5"], "Arm a: Unknown config key 'train.max_itre'; did you mean"),
        ([*a, "--arm", f"b={DENSE},model.hed=1", "--", *data], "Arm b: Unknown config key 'model.hed'"),
        ([*a, "--arm", f"b={DENSE},--with=lipp", "--", *data], "Arm b: There is no method 'lipp'; did you mean lip"),
        ([*a, "--", *data, "train.seed=1"], "train.seed=1 is set by --seeds: leave it out"),
        ([*a, "--", *data, "train.output_dir=x"], "is set by --runs"),
        ([*a, "--iterations", "5", "--", *data, "train.max_iter=3"], "is set by --iterations"),
        ([*a, "--", *data, "--eval-only"], "--eval-only is not for a comparison"),
        ([*a, "--", *data[:4]], "Own data needs all four flags"),
        ([*a, "--markdown", tmp_path / "notes.md", "--", *data], "is not a table of this tool"),
        ([*a, "--markdown", runs / "report.html", "--", *data], "is not a table of this tool"),
        (["--runs", taken, *a[2:], "--", *data], "taken/a is a file, where runs of arm a belong: move it"),
        (
            [*a, *b, "--metrics", "AP", "AP5O", "--", *data],
            "Arm a: --metrics AP5O: its evaluation has none; did you mean",
        ),
        (
            [*a, "--metrics", "AP-red", "recall", "--", *data],
            "--metrics recall: its evaluation has none: there are AP, ",
        ),
        ([*a, "--report-only"], "is finished: there is nothing to report (a, seed 0: not run)"),
    ):
        assert sentence in fails(capsys, *flags), sentence
    assert (tmp_path / "notes.md").read_text() == (taken / "a").read_text() == "my own"
    other = make_coco(tmp_path / "other")
    names = [f"dataloader.test.dataset.names.{k}={v}" for k, v in zip(("json_file", "image_root"), other)]
    train = make_coco(tmp_path / "train")
    names += [f"dataloader.train.dataset.names.{k}={v}" for k, v in zip(("json_file", "image_root"), train)]
    test = [n.replace(str(other[0]), str(train[0])).replace(str(other[1]), str(train[1])) for n in names]
    sentence = fails(
        capsys, *a[:2], *("--arm", ",".join([f"a={PLAIN}", *names])), "--arm", ",".join([f"b={DENSE}", *test])
    )
    assert "Arm b is evaluated on annotations_" in sentence and "give all arms one set" in sentence


@pytest.mark.parametrize("name", ["report.html", "report.json", "compare.json"])
def test_files_of_others_are_left_alone(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(compare.Runner, "run", lambda self: pytest.fail("trained"))
    (tmp_path / name).write_text('{"arguments": "my own"}')
    flags = ["--runs", tmp_path, "--arm", f"a={PLAIN}", "--", *own_data_flags(tmp_path)]
    assert f"{tmp_path / name} is not marked as made by this tool: move it" in fails(capsys, *flags)
    assert (tmp_path / name).read_text() == '{"arguments": "my own"}'


# ---------------------------------------------------------------- numbers
RESULTS = {"plain": {0: {"AP": 10.0}, 1: {"AP": 14.0}}, "ours": {0: {"AP": 11.0}, 1: {"AP": 17.0}}}


def test_table_by_hand():
    """Standard deviation of (10, 14) is sqrt(8) = 2.83; the differences are 1 and 3: mean 2, sqrt(2) = 1.41."""
    assert markdown(table_rows(RESULTS, {"ours": "plain"}, ["AP"]), ["AP"]) == [
        "| arm | AP | AP of each seed |",
        "|---|---|---|",
        "| plain | 12.00 ± 2.83 | 10.00, 14.00 |",
        "| ours | 14.00 ± 4.24 | 11.00, 17.00 |",
        "| ours minus plain | +2.00 ± 1.41 ▲ | +1.00, +3.00 |",
    ]


def test_every_arm_has_its_own_host():
    runs = {"a": {0: {"AP": 10.0}}, "b": {0: {"AP": 20.0}}, "x": {0: {"AP": 21.5}}, "y": {0: {"AP": 21.5}}}
    rows = table_rows(runs, {"a": None, "b": None, "x": "b", "y": "a"}, ["AP"])
    assert [(r.label, r.cells[0]) for r in rows if r.minus] == [("x minus b", "+1.50"), ("y minus a", "+11.50")]


def test_missing_runs_and_numbers():
    """Seeds are paired where both have a number; an arm without a run has a row."""
    nan = math.nan
    runs = {
        "plain": {0: {"AP": 10.0, "APl": nan}, 2: {"AP": 14.0, "APl": nan}},
        "ours": {0: {"AP": 11.0, "APl": nan}, 1: {"AP": 50.0, "APl": nan}, 2: {"AP": 14.0, "APl": 3.0}},
        "lost": {},
    }
    rows = table_rows(runs, {"ours": "plain", "lost": "plain"}, ["AP", "APl"])
    assert rows[0] == Row("plain", "", ["12.00 ± 2.83", "–", "10.00, 14.00"])
    assert rows[2] == Row("ours", "plain", ["+0.50 ± 0.71 ≈", "–", "+1.00, +0.00"])
    assert [r.cells for r in rows[3:]] == [["–", "–", "–"], ["–", "–", "–"]]


@pytest.mark.parametrize("ours, mark", [((12, 13), "▲"), ((8, 7), "▼"), ((9, 12), "≈"), ((12,), "")])
def test_marks(ours, mark):
    """Against 10 and 10: 2.5 ± 0.7, -2.5 ± 0.7, 0.5 ± 2.1; one seed says nothing."""
    runs = [{s: {"AP": float(v)} for s, v in enumerate(values)} for values in (ours, (10, 10))]
    assert difference(*runs, "AP").mark == mark


def test_choice_of_metrics():
    detector = {"plain": {0: {"AP": 1.0, "AP50": 2.0, "AP-red": 3.0}}, "ours": {0: {"AP": 1.0, "x": 2.0}}}
    assert results.choose_metrics(detector, None) == ["AP"]  # AP50 is not in every run
    classifier = {"a": {0: {"top1": 1.0, "class_mean": 2.0, "accuracy-0": 3.0}}}
    assert results.choose_metrics(classifier, None) == ["top1", "class_mean"]
    assert results.choose_metrics(classifier, ["class_mean", "accuracy-0"]) == ["class_mean", "accuracy-0"]
    with pytest.raises(UserError, match="no metric in common: plain, ours, a differ"):
        results.choose_metrics({**detector, **classifier}, None)
    with pytest.raises(UserError, match="--metrics topl x: not in every run's results, which have top1, class_mean"):
        results.choose_metrics(classifier, ["class_mean", "topl", "x"])


def write_results(folder, content):
    (folder / "inference").mkdir(parents=True)
    (folder / "inference/results.json").write_text(json.dumps(content))
    return folder


def test_results_of_one_set(tmp_path):
    one = write_results(tmp_path / "one", {"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}})
    assert results.read_results(one, "") == ("bbox", {"AP": 1.0})
    assert results.read_results(one, "segm") == ("segm", {"AP": 2.0})
    two = write_results(tmp_path / "two", {"set_a": {"bbox": {"AP": 1.0}}})
    for folder, task in ((one, "keypoints"), (two, ""), (tmp_path, "")):
        with pytest.raises(UserError):
            results.read_results(folder, task)


def test_classes_by_hand(tmp_path):
    """Mean over two seeds; blue has no ground truth."""
    folders = {}
    for seed, (before, after) in enumerate((((10.0, 40.0), (13.0, 30.0)), ((20.0, 40.0), (21.0, 50.0)))):
        pair = []
        for arm, (red, green) in (("host", before), ("ours", after)):
            metrics = {"AP": 1.0, "AP-red": red, "AP-green": green, "AP-blue": math.nan}
            pair.append(write_results(tmp_path / arm / str(seed), {"bbox": metrics}))
        folders[seed] = tuple(pair)
    assert results.class_table(folders, "bbox") == [
        {"class": "red", "before": 15.0, "after": 17.0, "change": 2.0},
        {"class": "green", "before": 40.0, "after": 40.0, "change": 0.0},
    ]
    bare = write_results(tmp_path / "bare", {"bbox": {"AP": 1.0}})
    assert results.class_table({0: (bare, bare)}, "bbox") == []


def test_costs_by_hand():
    """Means over all seeds; ratios of the seeds that both have: (30 + 20) / (10 + 15) = 2."""
    ours = {s: {"status": "finished", "seconds": v, "peak_memory_mib": None} for s, v in enumerate((30.0, 20.0, 10.0))}
    host = {s: {"status": "finished", "seconds": v} for s, v in enumerate((10.0, 15.0))}
    host[2] = {"status": "failed", "seconds": 1.0}
    found = results.costs(ours, host)
    assert found["seconds"] == {"mean": 20.0, "ratio": 2.0}
    assert found["peak_memory_mib"] == {"mean": None, "ratio": None}
    assert results.costs(ours, None)["seconds"] == {"mean": 20.0, "ratio": None}


# ---------------------------------------------------------------- pictures
def test_right_detections_by_hand():
    """Best first: red on red; again red on the same; green on red; red on green; green on green with IoU 0.4."""
    truth, classes = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])), [0, 1]
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [20, 0, 24, 10], [20, 0, 30, 10]]
    found = Instances(
        (50, 50), pred_boxes=Boxes(torch.tensor(boxes).float()), pred_classes=torch.tensor([0, 0, 1, 0, 1, 1])
    )
    assert examples.right_ones(found, truth, classes) == [True, False, False, False, False, True]
    assert examples.right_ones(found, Boxes(torch.zeros(0, 4)), []) == [False] * 6
    found.scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert examples.shown(found, 2, None).scores.tolist() == pytest.approx([0.6, 0.5])
    assert examples.shown(found, 2, 0.35).scores.tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_images_are_evenly_spaced(monkeypatch):
    images = [{"file_name": f"{i}", "annotations": [{"iscrowd": int(i == 3)}] * (i != 5)} for i in range(11)]
    monkeypatch.setattr(examples, "DatasetCatalog", {"set": images})
    names = [[int(d["file_name"]) for d in examples.choose_images("set", n)] for n in (1, 3, 20)]
    assert names == [[0], [0, 6, 10], [0, 1, 2, 4, 6, 7, 8, 9, 10]]  # 3 has a crowd alone, 5 nothing


def test_figures_have_the_pages_colours_and_ids():
    gain = {"values": {0: 1.0, 1: 2.0}, "mean": 1.5, "spread": 0.7}
    drawing = figures.draw_differences(
        {"AP": {"x − a": gain, "y − a": {**gain, "mean": -1.0}, "z − a": None}}, "points"
    )
    svg = figures.to_svg(drawing, "one", 'Differences of "AP"')
    assert svg.startswith('<svg role="img" aria-label="Differences of &quot;AP&quot;"')
    assert "#0a0b" not in svg and {"currentColor", "var(--series-0)", "var(--series-1)"} <= set(
        word for mark in (";", '"') for part in svg.split(mark) for word in part.split()
    )
    assert 'id="one-' in svg and "x − a" in svg and " none" in svg
    again = figures.to_svg(drawing, "two", "")
    ids = [{part.partition('"')[0] for part in text.split(' id="')[1:]} for text in (svg, again)]
    assert ids[0] and not ids[0] & ids[1]


def test_mean_curve_is_over_common_iterations():
    assert figures.mean_curve([([0, 10, 20], [1.0, 2.0, 3.0]), ([0, 20], [3.0, 5.0])]) == ([0, 20], [2.0, 4.0])
