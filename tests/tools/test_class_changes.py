"""tools/class_changes.py: per-class AP of two evaluations."""

import json
import math

import pytest
from PIL import Image

from tests.scenes import make_coco
from tools import class_changes

NAMES = ["red", "green", "blue"]  # of make_coco, by rising category id 2, 5, 9


def predictions(annotations, drop=(), score=0.9):
    """The ground truth itself as detections, without some categories."""
    rows = json.loads(annotations.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    return [{**{k: r[k] for k in keys}, "score": score} for r in rows if r["category_id"] not in drop]


@pytest.fixture
def scene(tmp_path):
    annotations, _ = make_coco(tmp_path, images=6, objects=4)
    present = {r["category_id"] for r in json.loads(annotations.read_text())["annotations"]}
    assert present == {2, 5, 9}
    for name, drop in (("before", (5,)), ("after", (9,))):
        (tmp_path / f"{name}.json").write_text(json.dumps(predictions(annotations, drop)))
    return tmp_path, annotations


def command(folder, *more):
    flags = [f"--{name}={folder / name}.json" for name in ("before", "after")]
    class_changes.main([*flags, "--output", str(folder / "out"), *more])


def test_predictions_are_evaluated(scene, capsys):
    folder, annotations = scene
    command(folder, "--annotations", str(annotations))
    rows = json.loads((folder / "out/class_changes.json").read_text())
    # perfect boxes give 100, none gives 0
    assert [(r["class"], round(r["before"]), round(r["after"]), round(r["change"])) for r in rows] == [
        ("green", 0, 100, 100),
        ("red", 100, 100, 0),
        ("blue", 100, 0, -100),
    ]
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == ["green", "red", "blue", "mean"]
    assert "1 of 3 classes gain" in out
    picture = Image.open(folder / "out/class_changes.png")
    colours = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (214, 39, 40)} <= colours  # a gain in blue, a loss in red


def test_results_of_train_net(tmp_path):
    for name, values in (("before", (1.0, 2.0, math.nan)), ("after", (4.0, 1.5, math.nan))):
        metrics = {"AP": 5.0, **{f"AP-{n}": v for n, v in zip(NAMES, values)}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"bbox": metrics}))
    command(tmp_path)
    rows = json.loads((tmp_path / "out/class_changes.json").read_text())
    assert [(r["class"], r["change"]) for r in rows] == [("red", 3.0), ("green", -0.5)]  # blue: no ground truth


@pytest.mark.parametrize(
    "content, more, sentence",
    [
        ("{", [], "cannot be read"),
        ("{}", [], "has no 'bbox'"),
        ('{"bbox": {"AP": 1}}', [], "has no AP per class"),
        ('{"bbox": {"AP-x": 1}}', ["--task=segm"], "has no 'segm'"),
        ('{"bbox": {"AP-x": 1}}', [], "'red' is a class of only one"),
        ("[]", [], "add --annotations FILE"),
        ("[]", ["--annotations=ANNOTATIONS"], "holds no predictions"),
        (
            '[{"image_id": 99, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]',
            ["--annotations=ANNOTATIONS"],
            "no pre",
        ),
    ],
)
def test_bad_input(content, more, sentence, scene, capsys):
    folder, annotations = scene
    (folder / "before.json").write_text(content)
    (folder / "after.json").write_text('{"bbox": {"AP-red": 1}}')
    with pytest.raises(SystemExit) as e:
        command(folder, *(flag.replace("ANNOTATIONS", str(annotations)) for flag in more))
    assert e.value.code == 2
    assert sentence in capsys.readouterr().err


def test_folder_in_use(scene, capsys):
    folder, annotations = scene
    (folder / "out").mkdir()
    (folder / "out/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        command(folder, "--annotations", str(annotations))
    assert "holds something already" in capsys.readouterr().err
    assert [p.name for p in (folder / "out").iterdir()] == ["notes.txt"]
