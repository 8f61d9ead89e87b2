"""The report of tools/compare.py, of runs that lie there: what it says, and that it needs nothing else."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from shared.config import load_config
from shared.training.folder import save_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tests.tools.test_compare import write_results
from tools import compare
from tools.comparison import sections

PLAIN, DENSE = (str(ROOT / "tests/tiny" / name) for name in ("faster_rcnn.py", "retinanet.py"))
ARMS = {"a": PLAIN, "b@a": PLAIN, "dense": DENSE, "x@dense": DENSE, "lost@dense": DENSE}


def write_run(folder, config, data, ap, weights=True):
    """A finished run of an untrained model with results of its own."""
    folder.mkdir(parents=True)
    run = make_run(load_config(config))
    run.use_own_data(*data[1::2])
    run.check_classes()
    save_config(run, str(folder))
    if weights:
        torch.save({"model": run.build_model().state_dict()}, folder / "model_final.pth")
    metrics = {"AP": ap, "AP50": 2 * ap, "APl": math.nan, "AP-red": ap, "AP-green": 1.0, "AP-blue": 0.5}
    write_results(folder, {"bbox": metrics})
    rows = [{"iteration": i, "total_loss": 5.0 - i, "time": 0.25, "bbox/AP": ap * i} for i in range(3)]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"status": "finished", "attempts": [{}], "seconds": 10.0 * ap, "jobs": 1, "threads": "1"}
    record |= {
        "seconds_per_step": 0.25,
        "peak_memory_mib": 900.0,
        "memory_of": "process",
        "inference_parameters": 10**6,
    }
    record |= {
        "machine": {"cpu": "<CPU> & co", "gpu": "none", "engine": "E", "torch": "2"},
        "ended": "2026-01-02T03:04:05",
    }
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Runs of five arms, one of which failed, and what main makes of them."""
    folder = tmp_path_factory.mktemp("reported")
    data = own_data_flags(folder)
    runs = folder / "runs"
    values = {"a": (10.0, 14.0), "b": (11.0, 17.0), "dense": (5.0, 5.0), "x": (4.0, 5.0)}
    configs = {name.partition("@")[0]: config for name, config in ARMS.items()}
    for name, pair in values.items():
        for seed, ap in enumerate(pair):
            write_run(runs / name / str(seed), configs[name], data, ap, weights=seed == 0 and name != "x")
    for seed in (0, 1):
        (runs / "lost" / str(seed)).mkdir(parents=True)
        record = {"status": "failed", "error": "<no> memory", "attempts": [{}]}
        (runs / "lost" / str(seed) / "run.json").write_text(json.dumps(record))
    flags = [part for name, config in ARMS.items() for part in ("--arm", f"{name}={config}")]
    flags += ["--seeds", "0", "1", "--runs", str(runs), "--title", "A & B", "--examples", "2", "--report-only"]
    with pytest.raises(SystemExit) as e:
        compare.main([*flags, "--markdown", str(folder / "table.md"), "--", *data])
    assert e.value.code == 1  # an arm failed
    return folder, runs, flags, data


class Page(HTMLParser):
    """Collects a page's elements and text; counts what is not closed in order."""

    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, content):
        super().__init__()
        self.elements, self.words, self.open, self.unbalanced = [], [], [], 0
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.unbalanced += 1

    def handle_data(self, data):
        self.words.append(data)


def test_report_needs_nothing_from_elsewhere(reported):
    content = (reported[1] / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert not page.unbalanced and not page.open
    tags = {tag for tag, _ in page.elements}
    assert {"svg", "img", "table"} <= tags and not tags & {"script", "link", "iframe", "object", "embed", "base"}
    addresses = [
        v for _, attrs in page.elements for k, v in attrs.items() if k.endswith(("src", "href", "srcset", "data"))
    ]
    assert addresses and all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert "@import" not in content and "http:" not in content and "https:" not in content
    assert not [k for _, attrs in page.elements for k in attrs if k.startswith("on")]
    assert all(v.startswith("#") for part in content.split("url(")[1:] for v in [part.partition(")")[0]])
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) and {a[1:] for a in addresses if a.startswith("#")} <= set(ids)
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg")


def test_report_says_what_there_is(reported):
    content = (reported[1] / "report.html").read_text(encoding="utf-8")
    said = " ".join(" ".join(Page(content).words).split())
    assert re.findall(r"<h2>(.*?)</h2>", content) == [
        *("What was compared", "Results", "Differences", "Classes", "Learning curves", "Time and memory"),
        *("Example detections", "How to read this"),
    ]
    for words in (
        "A & B",
        "<CPU> & co",
        "lost, seed 0: <no> memory",
        "rises by more than its spread over the seeds with b (+2.0)",
        "differs by no more than its spread over the seeds with x (-0.5)",
        "difference to a +2.00 ± 1.41 ▲ +4.00 ± 2.83 ▲ – +1.00, +3.00",
        "red +2.0 12.0 → 14.0 -0.5 5.0 → 4.5",
        "classes that gain 1 of 3 0 of 3",
        "× 1.17 of a",  # seconds: (110 + 170) / (100 + 140)
        "3 images, 6 objects",
        "0.png, 2 objects",
        "It has no finished run.",
        "model_final.pth does not exist.",
    ):
        assert words in said, words
    assert content.count("data:image/jpeg") == 2 * (2 + 1) + 2 * (1 + 1)  # annotated and models; x, lost have none
    assert "One seed" not in said and "Little was learned" not in said
    assert "--report-only" not in said and "--arm b@a=" in said


def test_report_json_is_the_results(reported):
    _, runs, _, _ = reported

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((runs / "report.json").read_text(), parse_constant=refuse)
    for name in ("a", "b", "dense", "x"):
        for seed in "01":
            metrics = json.loads((runs / name / seed / "inference/results.json").read_text())["bbox"]
            ours = data["arms"][name]["runs"][seed]["metrics"]
            assert ours.pop("APl") is None and math.isnan(metrics.pop("APl"))
            assert ours == metrics
    assert data["differences"]["b"]["AP"]["values"] == {"0": 1.0, "1": 3.0}
    assert data["curves"]["b"]["1"]["bbox/AP"] == [[0, 1, 2], [0.0, 17.0, 34.0]]
    assert data["arms"]["lost"]["runs"]["0"]["status"] == "failed"
    assert data["examples"]["truth"] == [2, 2] and len(data["examples"]["arms"]["a"]) == 2


def test_markdown_file(reported):
    text = (reported[0] / "table.md").read_text(encoding="utf-8")
    assert "Made by `tools/compare.py`" in text and str(reported[0]) not in text
    assert "| b minus a | +2.00 ± 1.41 ▲ | +4.00 ± 2.83 ▲ | – | +1.00, +3.00 |" in text
    assert "x: tests/tiny/retinanet.py" in text and "2026-01-02, <CPU> & co, seeds 0, 1" in text


def test_what_arms_share_is_said_as_far_as_it_is_known(reported):
    data = json.loads((reported[1] / "report.json").read_text())
    claim = "compared with its host, trained {}. AP (in percent"
    whole = "on the same images, for as many steps, with as many images a step"
    assert claim.format(whole) in sections.lead(data) and "Not trained alike" not in sections.lead(data)
    ours = data["arms"]["b"]
    ours["iterations"], ours["train_sets"] = 2000, None
    said = sections.lead(data)
    assert claim.format("with as many images a step") in said
    assert "<b>Not trained alike.</b>" in said and "<li>training steps of b: 2,000; of its host a: 4</li>" in said
    ours["train_sets"], ours["batch_size"] = ["<mine>"], 1
    said = sections.lead(data)
    assert "its host. AP" in said and "training set of b: &lt;mine&gt;; of its host a: annotations_" in said
    for arm in data["arms"].values():  # nothing of an arm without a run
        arm.update(iterations=None, train_sets=None, batch_size=None)
    assert "compared with its host. AP" in sections.lead(data) and "Not trained alike" not in sections.lead(data)


def test_report_again_from_the_folder_alone(reported, capsys):
    """Arms, seeds and title of the command that trained; what is given now wins."""
    _, runs, flags, data = reported
    (runs / "compare.json").write_text(json.dumps({"arguments": [*flags[:-1], "--", *data]}))
    with pytest.raises(SystemExit):
        compare.main(["--runs", str(runs), "--report-only", "--examples", "0", "--metrics", "AP50"])
    content = (runs / "report.json").read_text()
    again = json.loads(content)
    assert (
        again["title"] == "A & B"
        and again["seeds"] == [0, 1]
        and again["metrics"] == ["AP50"]
        and again["hosts"]["x"] == "dense"
    )
    assert again["command"].startswith("python tools/compare.py \\\n    --arm a=") and again["examples"]["images"] == []
    assert "| arm | AP50 | AP50 of each seed |" in capsys.readouterr().out


def test_one_seed_says_so(reported, capsys):
    _, runs, flags, data = reported
    pair = flags[:4]
    compare.main([*pair, "--seeds", "1", "--runs", str(runs), "--report-only", "--examples", "0", "--", *data])
    said = " ".join(" ".join(Page((runs / "report.html").read_text()).words).split())
    assert "no difference on this page can be told from chance" in said
    assert "is higher than the host's with b (+3.0)" in said and "▲" not in said and "±" not in said
    assert "of each seed" not in said
    assert "| b minus a | +3.00 | +6.00 | – | +3.00 |" in capsys.readouterr().out


def test_runs_that_were_not_measured(tmp_path):
    """Finished runs of train_net.py alone: no run.json, so no times; a classifier has no pictures."""
    data = own_data_flags(tmp_path)
    for name in "ab":
        write_run(tmp_path / "runs" / name / "0", PLAIN, data, 4.9)
        for file in ("run.json", "metrics.json"):
            (tmp_path / "runs" / name / "0" / file).unlink()
    flags = ["--arm", f"a={PLAIN}", "--arm", f"b={PLAIN}", "--seeds", "0", "--runs", str(tmp_path / "runs")]
    compare.main([*flags, "--report-only", "--examples", "0"])
    report = json.loads((tmp_path / "runs/report.json").read_text())
    assert report["arms"]["a"]["runs"]["0"]["status"] == "finished" and report["costs"]["a"]["seconds"]["mean"] is None
    said = (tmp_path / "runs/report.html").read_text()
    assert "No run reaches AP 5" in said and "not recorded" in said and "metrics.json have no curves" in said


def test_many_classes_scroll():
    rows = [{"class": f"c{i}", "before": 1.0, "after": 2.0, "change": 1.0} for i in range(40)]
    data = {"classes": {"x": rows}, "hosts": {"x": "a"}}
    assert 'class="scroll tall"' in sections.classes(data)
    assert 'class="scroll tall"' not in sections.classes({**data, "classes": {"x": rows[:10]}})
