"""A short training on real pictures in COCO's format, where they lie beside the repository."""

import json

import pytest

import train_net
from tests.paths import ROOT, SHARED_FILES

DATA = SHARED_FILES / "data/bccd"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")
def test_learns_and_evaluates_again_to_the_last_digit(tmp_path):
    run = tmp_path / "run"
    data = [
        *("--train-json", str(DATA / "train.json"), "--train-images", str(DATA / "images")),
        *("--val-json", str(DATA / "val.json"), "--val-images", str(DATA / "images")),
    ]
    resize = [
        f"dataloader.{part}.mapper.augmentations.0.{key}={value}"
        for part, side in (("train", "[240]"), ("test", "240"))
        for key, value in (("short_edge_length", side), ("max_size", 320))
    ]
    config = ["--config-file", str(ROOT / "configs/quickstart.py"), f"train.output_dir={run}"]
    train_net.cli([*config, *data, *resize, "train.max_iter=120", "dataloader.train.total_batch_size=4"])
    results = (run / "inference/results.json").read_text()
    metrics = json.loads(results)["bbox"]
    assert {"AP-RBC", "AP-WBC", "AP-Platelets"} <= set(metrics)
    assert metrics["AP50"] > 10
    train_net.cli(
        [*("--config-file", str(run / "config.yaml"), "--eval-only"), f"train.init_checkpoint={run}/model_final.pth"]
    )
    assert (run / "inference_model_final/results.json").read_text() == results
