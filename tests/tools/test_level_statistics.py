"""tools/level_statistics.py: counts of small and large RoIs per level."""

import json

import pytest
import torch
from PIL import Image

import train_net
from detectron2.structures import Boxes, ImageList, Instances
from projects.InterNet.assign import LevelAssigner
from shared.errors import UserError
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import level_statistics

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")


def areas(*sides):
    return torch.tensor(sides, dtype=torch.float32).square()


def test_table_by_hand():
    """Boundaries 79.2, 158.4, 316.8; thresholds 56, 112, 224, 448. Two batches: counts are halved."""
    batches = [areas(0, 30, 56, 57, 79), areas(80, 112, 113, 158, 200, 300, 317, 449)]
    rows = level_statistics.table(batches, LevelAssigner())
    columns = ("level", "threshold", "small", "large", "below", "above")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        (2, 56, 2.5, 4.0, 1.5, 1.0),  # 0, 30, 56 | 57, 79
        (3, 112, 2.0, 2.0, 1.0, 1.0),  # 80, 112 | 113, 158
        (4, 224, 1.0, 1.0, 0.5, 0.5),  # 200 | 300
        (5, 448, 1.0, 0.0, 0.5, 0.5),  # 317 | 449
    ]
    assert [round(13 * row["share"]) for row in rows] == [5, 4, 2, 2]


def test_by_roi_size_the_coarsest_level_has_large_ones():
    rows = level_statistics.table([areas(56, 57, 224, 448, 449, 1000)], LevelAssigner(rule="roi_size"))
    assert [row["small"] for row in rows] == [1, 1, 1, 3]
    assert [row["large"] for row in rows] == [5, 4, 3, 2]
    assert [row["above"] for row in rows] == [0, 0, 0, 2]


@pytest.mark.parametrize(
    "rule, expected",
    [
        ({}, [79.196, 158.392, 316.784]),
        ({"rounding": "floor"}, [112, 224, 448]),
        ({"base": 40}, [14.142, 28.284, 56.569]),
        ({"rule": "roi_size"}, [56, 112, 224]),
    ],
)
def test_boundaries_of_the_four_rules(rule, expected):
    assert rule in level_statistics.RULES_SHOWN.values()
    assert level_statistics.boundaries(LevelAssigner(**rule)) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module", params=["py", "yaml"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    changes = {
        "py": [f"train.output_dir={folder}/run", "train.max_iter=1", "model.roi_heads.batch_size_per_image=16"],
        "yaml": [f"OUTPUT_DIR={folder}/run", "SOLVER.MAX_ITER=1", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=16"],
    }[request.param]
    config = str(ROOT / f"tests/tiny/faster_rcnn.{request.param}")
    train_net.cli(["--config-file", config, *own_data_flags(folder), *changes])
    return folder / "run"


def command(run, output, *more):
    flags = ["--config-file", str(run / "config.yaml"), "--weights", str(run / "model_final.pth"), "--batches", "2"]
    level_statistics.main([*flags, "--output", str(output), *more])
    return json.loads((output / "level_statistics.json").read_text())


def test_command(run, tmp_path, capsys):
    content = command(run, tmp_path / "all", "--base", "40")
    assert content["batches"] == 2
    small = [row["small"] for row in content["levels"]]
    assert sum(small) == 2 * 16  # two images of 16 RoIs a batch
    assert [row["large"] for row in content["levels"]] == [sum(small[i:]) for i in (1, 2, 3, 4)]
    assert all(row["below"] + row["above"] == row["small"] for row in content["levels"])
    assert Image.open(tmp_path / "all/level_statistics.png").size[0] == 1200
    assert "means of 2 batches" in capsys.readouterr().out
    default = command(run, tmp_path / "default")
    assert sum(row["small"] for row in default["levels"][1:]) == 0  # no box of a 64-pixel image reaches level 3


def test_repeated_boxes_are_dropped(monkeypatch):
    class Heads:
        def label_and_sample_proposals(self, proposals, targets):
            return proposals

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 9], [0, 0, 20, 5]])

    class Model(torch.nn.Module):
        device, roi_heads = "cpu", Heads()
        backbone = staticmethod(lambda x: {})
        proposal_generator = staticmethod(
            lambda images, features, targets: ([Instances((32, 32), proposal_boxes=Boxes(boxes))], {})
        )

        def preprocess_image(self, batch):
            return ImageList(torch.zeros(1, 3, 32, 32), [(32, 32)])

    batch = [{"instances": Instances((32, 32))}]
    assert level_statistics.sampled_boxes(Model(), [batch] * 3, 2)[1].tolist() == [100, 100, 0, 100]
    (got,) = level_statistics.sampled_boxes(Model(), [batch], 2, unique=True)
    assert got.tolist() == [100, 100]


def test_bad_input(run, tmp_path, capsys):
    with pytest.raises(UserError, match="Linear has no RoIs"):
        level_statistics.sampled_boxes(torch.nn.Linear(1, 1), [], 1)
    for flags, sentence in (
        (["--base", "0"], "base, roi_size and num_levels must be positive"),
        (["--batches", "0"], "--batches must be at least 1"),
        (["--weights", "no.pth"], "'no.pth' does not exist"),
    ):
        with pytest.raises(SystemExit) as e:
            command(run, tmp_path / "out", *flags)
        assert e.value.code == 2 and sentence in capsys.readouterr().err
