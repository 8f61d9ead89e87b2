"""tools/roi_tsne.py: features of final detections, numbers and picture of them."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import train_net
from detectron2.config import LazyConfig, instantiate
from shared.errors import UserError
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import roi_tsne
from tools.roi_tsne import Detections

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")


def tiny_model(config=LAZY):
    torch.manual_seed(0)
    return instantiate(LazyConfig.load(config).model).eval()


def images(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [{"image": torch.randint(0, 255, (3, 64, 64), generator=rng).float(), "height": 32, "width": 32}] * n


def test_features_are_those_the_class_was_told_from():
    """The predictor's softmax of a detection's features gives the detection's score, for its class."""
    model = tiny_model()
    found = roi_tsne.collect(model, [images(2), images(1, seed=1)])
    with torch.no_grad():
        instances = [x["instances"] for batch in ([images(2), images(1, seed=1)]) for x in model(batch)]
        probs = model.roi_heads.box_predictor.cls_score(torch.as_tensor(found.features)).softmax(dim=1)
    classes, scores = (torch.cat([getattr(x, key) for x in instances]) for key in ("pred_classes", "scores"))
    assert len(classes) > 50 and found.features.shape == (len(classes), 32)
    np.testing.assert_array_equal(found.classes, classes)
    torch.testing.assert_close(probs[torch.arange(len(classes)), classes], scores)
    sides = torch.cat([x.pred_boxes.area() for x in instances]).sqrt() * 2  # outputs are 32 px, the input is 64
    torch.testing.assert_close(torch.as_tensor(found.sides), sides)


def test_leaves_the_model_as_it_was_and_counts_images():
    model = tiny_model()
    all_of = len(roi_tsne.collect(model, [images(2), images(2)]).classes)
    assert len(roi_tsne.collect(model, [images(2), images(2)], limit=3).classes) == all_of * 3 // 4
    predictor = model.roi_heads.box_predictor
    assert "inference" not in vars(predictor) and not predictor._forward_pre_hooks


def test_models_without_one_predictor_are_refused():
    with pytest.raises(UserError, match="Linear has no RoI heads with one box predictor"):
        roi_tsne.collect(torch.nn.Linear(1, 1), [])
    with pytest.raises(UserError, match="no images"):
        roi_tsne.collect(tiny_model(), [])


def part(classes, features=None, sides=None):
    n = len(classes)
    features = np.zeros((n, 2)) if features is None else np.array(features, dtype=float)
    return Detections(features, np.array(classes), np.zeros(n) if sides is None else np.array(sides, dtype=float))


def test_same_classes_and_counts_in_both_panels():
    first = part([*range(12), *range(1, 12), *range(2, 12)])  # class 0 once, class 1 twice, others three times
    second = part([0] * 50 + list(range(1, 12)) * 2)
    chosen, classes = roi_tsne.choose([first, second], points=1000, seed=0)
    assert classes == list(range(2, 12))  # the ten with most detections of the first
    assert [len(x.classes) for x in chosen] == [20, 20]
    assert set(chosen[1].classes) == set(range(2, 12))
    again, _ = roi_tsne.choose([first, second], points=7, seed=1)
    assert [len(x.classes) for x in again] == [7, 7]
    with pytest.raises(UserError, match="Only 4 detection"):
        roi_tsne.choose([part([1] * 4)], points=100, seed=0)


def test_numbers_by_hand():
    """Class 0 at (0, +-1) small, (0, +-3) large; class 1 at (8, +-1), all small: its size has no gap.

    Centres: (0, 0), (8, 0), all (8/3, 0). Distances to the own centre: 1, 1, 3, 3, 1, 1: mean 10/6. To that of all:
    2 sqrt(64/9 + 1) + 2 sqrt(64/9 + 9) + 2 sqrt(256/9 + 1), over 6.
    """
    features = [(0, 1), (0, -1), (0, 3), (0, -3), (8, 1), (8, -1)]
    unit = (math.sqrt(64 / 9 + 1) + math.sqrt(64 / 9 + 9) + math.sqrt(256 / 9 + 1)) / 3
    got = roi_tsne.measure(part([0] * 4 + [1] * 2, features, [5, 5, 50, 50, 5, 5]), small_below=10)
    assert got["within"] == pytest.approx(10 / 6 / unit)
    assert got["small_large"] == pytest.approx(0, abs=1e-12)  # centres of small and large coincide
    moved = [(0, 1), (0, 1), (0, 3), (0, 3), (8, 1), (8, -1)]
    got = roi_tsne.measure(part([0] * 4 + [1] * 2, moved, [5, 5, 50, 50, 5, 5]), small_below=10)
    centre = np.mean(moved, axis=0)
    assert got["small_large"] == pytest.approx(2 / np.linalg.norm(np.array(moved) - centre, axis=1).mean())
    assert 0 < got["silhouette"] < 1
    alone = roi_tsne.measure(part([3] * 6, features), small_below=10)
    assert math.isnan(alone["silhouette"]) and math.isnan(alone["small_large"])


def test_clusters_stay_clusters():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(10 * k, 1, (20, 64)) for k in range(3)])
    points = roi_tsne.embed(features, seed=0)
    centres = points.reshape(3, 20, 2).mean(axis=1)
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.repeat(range(3), 20))
    np.testing.assert_array_equal(points, roi_tsne.embed(features, seed=0))


@pytest.mark.parametrize("kind", ["py", "yaml"])
def test_command(kind, tmp_path, capsys):
    output = f"train.output_dir={tmp_path}/run" if kind == "py" else f"OUTPUT_DIR={tmp_path}/run"
    steps = "train.max_iter=1" if kind == "py" else "SOLVER.MAX_ITER=1"
    config = str(ROOT / f"tests/tiny/faster_rcnn.{kind}")
    train_net.cli(["--config-file", config, *own_data_flags(tmp_path), output, steps])
    files = ["--config-file", f"{tmp_path}/run/config.yaml", "--weights", *[f"{tmp_path}/run/model_final.pth"] * 2]
    roi_tsne.main([*files, "--output", f"{tmp_path}/tsne", "--limit", "2", "--points", "40", "--small-below", "20"])
    content = json.loads((tmp_path / "tsne/roi_tsne.json").read_text())
    assert set(content["classes"]) <= {"red", "green", "blue"} and 5 <= content["points"] <= 40
    first, second = ({k: v for k, v in panel.items() if k != "weights"} for panel in content["panels"])
    assert first.keys() == {"within", "small_large", "silhouette"} and 0 < first["within"] <= 1.5
    assert Image.open(tmp_path / "tsne/roi_tsne.png").size == (2025, 900)  # two panels and a legend, 150 dpi
    assert "points a panel" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--config-file", "a", "--weights", "x", "y", "z"], "1 config(s), 3 checkpoint(s): give one or two"),
        (["--config-file", "a", "b", "--weights", "x"], "2 config(s), 1 checkpoint(s)"),
        (["--config-file", "no.py", "--weights", "x.pth"], "'no.py' does not exist"),
        (["--config-file", LAZY, "--weights", "x.pth"], "'x.pth' does not exist"),
        (["--config-file", LAZY, "--weights", ""], "No weights: add --weights FILE"),
    ],
)
def test_bad_input(flags, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        roi_tsne.main([*flags, "--output", str(tmp_path / "out")])
    assert e.value.code == 2
    assert sentence in capsys.readouterr().err
