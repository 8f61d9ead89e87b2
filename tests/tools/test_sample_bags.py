"""tools/sample_bags.py and tools/alignment.py: bags over training time, and alignment of any detector."""

import json

import pytest
import torch
from PIL import Image

import train_net
from shared.config import load_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import alignment, sample_bags

QUICK = str(ROOT / "projects/MuSu/configs/quick.py")
YAML = str(ROOT / "projects/MuSu/configs/musu_r50_fpn_1x.yaml")
TINY = [
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.max_iter=2",
    "train.checkpointer.period=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps of the quick detector on coloured rectangles, a checkpoint each."""
    folder = tmp_path_factory.mktemp("bags")
    train_net.cli(["--config-file", QUICK, *own_data_flags(folder), f"train.output_dir={folder}/run", *TINY])
    return folder / "run"


def test_bags_over_time(run, tmp_path, capsys):
    weights = [str(run / "model_0000000.pth"), str(run / "model_final.pth")]
    command = ["--config-file", str(run / "config.yaml"), "--weights", *weights, "--output", str(tmp_path / "bags")]
    sample_bags.main([*command, "--images", "2", "0.png"])
    content = json.loads((tmp_path / "bags/bags.json").read_text())
    assert list(content) == ["2", "0"]
    one, two = content["0"].values()
    assert [x["box"] for x in one["objects"]] == [x["box"] for x in two["objects"]] and len(one["objects"]) == 2
    assert one["mean"] != two["mean"]
    for bags in (one, two):
        sizes = [len(x["samples"]) for x in bags["objects"]]
        assert sum(sizes) / 2 == pytest.approx(bags["mean"]["bag_size"]) and sum(sizes) > 2
        for item in bags["objects"]:
            x0, y0, x1, y1 = item["box"]
            assert 0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96  # the 64 px image is seen at 96
            assert all(x0 < s["point"][0] < x1 and y0 < s["point"][1] < y1 for s in item["samples"])
            assert max(s["w_cls"] for s in item["samples"]) == max(s["w_reg"] for s in item["samples"]) == 1
            best = max(item["samples"], key=lambda s: s["score"])
            assert item["top_scored_iou"] >= 0 and 0 < best["score"] < 1
    assert Image.open(tmp_path / "bags/0.bags.png").size[0] == 1200
    assert "2 image(s), 2 checkpoint(s)" in capsys.readouterr().out


def test_alignment_of_checkpoints(run, tmp_path, capsys):
    command = ["--config-file", str(run / "config.yaml"), "--weights", *[str(run / "model_final.pth")] * 2]
    alignment.main([*command, "--output", str(tmp_path / "rows.json"), "--opts", "model.test_score_thresh=0.0"])
    one, two = json.loads((tmp_path / "rows.json").read_text())
    assert one == two and 0 < one["IoU_top"] < 100 and 0 < one["found"] <= 100
    assert "near_best" in capsys.readouterr().out


def test_yaml_form(tmp_path):
    """A CfgNode's test images and format; the model is not trained."""
    loaded = make_run(load_config(YAML))
    loaded.use_own_data(*own_data_flags(tmp_path)[1::2])
    found = sample_bags.annotated(loaded, ["1"])
    assert [len(x["instances"]) for x in found] == [2] and found[0]["image"].shape == (3, 800, 800)
    assert alignment.test_set(loaded) == loaded.cfg.DATASETS.TEST[0]


@pytest.mark.parametrize(
    "tool, flags, sentence",
    [
        (sample_bags, ["--images", "nine"], "no image 'nine'"),
        (sample_bags, ["--weights", "no.pth"], "'no.pth' does not exist"),
        (alignment, ["--weights", "a", "b", "c"], "2 configs, 3 checkpoint(s): give one config, or one for each"),
    ],
)
def test_bad_input(tool, flags, sentence, run, tmp_path, capsys):
    configs = [str(run / "config.yaml")] * (2 if tool is alignment else 1)
    flags = flags if "--weights" in flags else [*flags, "--weights", str(run / "model_final.pth")]
    with pytest.raises(SystemExit) as e:
        tool.main(["--config-file", *configs, *flags, "--output", str(tmp_path / "out")])
    assert e.value.code == 2
    assert sentence in capsys.readouterr().err


def test_other_detectors_have_no_bags(tmp_path, capsys):
    config = str(ROOT / "projects/MuSu/configs/quick_fcos.py")
    model = make_run(load_config(config)).build_model()
    torch.save({"model": model.state_dict()}, tmp_path / "fcos.pth")
    with pytest.raises(SystemExit):
        sample_bags.main(["--config-file", config, "--weights", f"{tmp_path}/fcos.pth", "--output", f"{tmp_path}/out"])
    assert "FCOS has no such bags" in capsys.readouterr().err
