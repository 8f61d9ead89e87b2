"""Classifiers through train_net.py: train, average, resume, evaluate, start a detector; what users get wrong."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train_net
from detectron2.config import LazyConfig
from shared.config import load_config
from shared.errors import UserError
from shared.predictor import predictor_cfg
from shared.training import loop
from shared.training.ema import WeightAverage
from tests.image_folders import CLASSES, folder_settings, make_image_folder
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tests.test_train_net import fails

CONFIG = str(ROOT / "tests/tiny/classifier.py")
EMA = ["train.ema.enabled=true", "train.ema.decay=0.5"]


@pytest.fixture
def folders(tmp_path):
    return folder_settings(make_image_folder(tmp_path / "train"), make_image_folder(tmp_path / "val", images=3, seed=1))


def train(run, *settings):
    train_net.cli(["--config-file", CONFIG, f"train.output_dir={run}", *settings])


def read(run, file="model_final.pth"):
    return torch.load(run / file, weights_only=True)


def results(run, folder="inference"):
    return json.loads((run / folder / "results.json").read_text())


def assert_close(a: dict, b: dict):
    assert a.keys() == b.keys() and len(a) > 40
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=2e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_train_evaluate_and_config_of_the_run(folders, tmp_path, capsys):
    run = tmp_path / "run"
    train(run, *folders, "train.max_iter=12")
    accuracy = results(run)["classification"]
    assert {"top1", "class_mean", "accuracy-a_red"} <= set(accuracy) and "top5" not in accuracy
    assert accuracy["top1"] > 50  # colours are easily told apart
    saved = LazyConfig.load(str(run / "config.yaml"))
    assert saved.model.num_classes == 3 and list(saved.train.class_names) == ["a_red", "b_green", "c_blue"]
    weights = f"train.init_checkpoint={run}/model_final.pth"
    train_net.cli(["--config-file", str(run / "config.yaml"), "--eval-only", weights])
    assert results(run, "inference_model_final")["classification"] == accuracy
    capsys.readouterr()
    train_net.cli(["--config-file", CONFIG, "--dry-run", *folders])
    out = capsys.readouterr().out
    assert "FLOPs" in out and "for one 16x16 image" in out and "2 output(s) for the first batch" in out
    with pytest.raises(UserError, match="a classifier is run by train_net.py --eval-only"):
        predictor_cfg(saved)


def test_mixed_batches_train(folders, tmp_path):
    """The count of classes, left to the data, reaches mixup too; the run's config is complete."""
    better = load_config(str(ROOT / "configs/classification/resnet50_imagenet_400e.py"))
    cfg = load_config(CONFIG, folders)
    cfg.dataloader.train.collate_fn = better.dataloader.train.collate_fn
    cfg.dataloader.train.num_workers = 1
    LazyConfig.save(cfg, str(tmp_path / "mixed.yaml"))
    for config, run in (("mixed.yaml", "one"), ("one/config.yaml", "two")):
        train_net.cli(["--config-file", f"{tmp_path}/{config}", f"train.output_dir={tmp_path}/{run}"])
    assert "MixUp" in (tmp_path / "two/config.yaml").read_text()


# ---------------------------------------------------------------- average of the weights
def test_average_by_hand():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(model, decay=0.75)
    for value in (1.0, 2.0, 4.0):
        model[0].weight.data.fill_(value)
        model[1].running_mean.fill_(10 * value)
        average.update()
    # the first copies: 1; 0.75 + 0.5 = 1.25; 0.9375 + 1 = 1.9375
    assert average.averaged[0].weight.item() == pytest.approx(1.9375)
    assert average.averaged[1].running_mean.item() == pytest.approx(19.375)
    assert model[0].weight.item() == 4.0
    state = average.state_dict()
    assert state["updates"] == 3 and state["trained_model"]["0.weight"].item() == 4.0
    with pytest.raises(ValueError, match=r"train.ema.decay must be in \[0, 1\), got 1.0"):
        WeightAverage(model, decay=1.0)


def test_average_of_weights_and_statistics_but_not_of_memories():
    """After 0 and 4 with decay 0.5: weights and running means 2; a count is a count."""

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)
            self.register_buffer("count", torch.zeros(1))

    model = Counter()
    average = WeightAverage(model, 0.5)
    for value in (0.0, 4.0):
        model.norm.weight.data.fill_(value)
        model.norm.running_mean.fill_(value)
        model.count.fill_(value)
        average.update()
    assert average.averaged.norm.weight.item() == 2 and average.averaged.norm.running_mean.item() == 2
    assert average.averaged.count.item() == 4


def test_average_is_what_is_saved_evaluated_and_resumed(folders, tmp_path):
    """The run goes on from its checkpoint as if it had not stopped; batches hold all images, so their order is no
    matter. The average is the model of the file."""
    settings = [*folders, *EMA, "dataloader.train.total_batch_size=12"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, *settings)
    final, half = read(whole), read(whole, "model_0000001.pth")
    assert final["ema"]["updates"] == 4 and half["ema"]["updates"] == 2
    trained = final["ema"]["trained_model"]
    assert not torch.allclose(final["model"]["fc.weight"], trained["fc.weight"])

    parts.mkdir()
    shutil.copy(whole / "model_0000001.pth", parts)
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    train(parts, *settings, "--resume")
    again = read(parts)
    assert_close(again["model"], final["model"])
    assert_close(again["ema"]["trained_model"], trained)
    assert again["ema"]["updates"] == 4 and again["iteration"] == final["iteration"] == 3

    weights = f"train.init_checkpoint={whole}/model_final.pth"
    train_net.cli(["--config-file", CONFIG, "--eval-only", f"train.output_dir={parts}", *folders, weights])
    assert results(parts, "inference_model_final") == results(whole)


def test_training_starts_from_the_average_of_a_file(folders, tmp_path):
    train(tmp_path / "one", *folders, *EMA)
    weights = f"train.init_checkpoint={tmp_path}/one/model_final.pth"
    start = read(tmp_path / "one")["model"]["fc.weight"]
    for name, settings in (("two", EMA), ("three", [])):
        train(tmp_path / name, *folders, *settings, weights, "train.max_iter=1", "optimizer.lr=0")
        assert torch.equal(read(tmp_path / name)["model"]["fc.weight"], start), name


def test_average_cannot_be_turned_off_on_the_way(folders, tmp_path, capsys):
    train(tmp_path / "run", *folders, *EMA)
    message = fails(
        capsys,
        "--config-file",
        CONFIG,
        *folders,
        "--resume",
        f"train.output_dir={tmp_path / 'run'}",
        "train.max_iter=6",
    )
    assert "trained with train.ema.enabled=true: set it again" in message


# ---------------------------------------------------------------- detectors, several processes
def test_detector_starts_from_a_classifier(folders, tmp_path):
    config = tmp_path / "classifier.yaml"
    detector = str(ROOT / "tests/tiny/faster_rcnn.py")
    cfg = load_config(CONFIG, folders)
    cfg.model.backbone = LazyConfig.load(detector).model.backbone.bottom_up
    cfg.model.in_feature = "res5"
    LazyConfig.save(cfg, str(config))
    size = [f"dataloader.{part}.mapper.transforms.0.size=[64,64]" for part in ("train", "test")]
    train_net.cli(
        ["--config-file", str(config), f"train.output_dir={tmp_path}/one", "train.max_iter=1", *folders, *size]
    )
    train_net.cli(
        [
            *("--config-file", detector, *own_data_flags(tmp_path / "boxes"), f"train.output_dir={tmp_path}/two"),
            *("train.max_iter=1", "optimizer.lr=0", f"train.init_checkpoint={tmp_path}/one/model_final.pth"),
        ]
    )
    log = (tmp_path / "two/log.txt").read_text()
    # 20 convolutions with weight, norm's weight and bias
    assert "a classifier: 60 of 60 backbone entries matched (backbone.bottom_up.*)" in log
    assert "its head is unused (fc.weight, fc.bias)" in log
    one, two = read(tmp_path / "one")["model"], read(tmp_path / "two")["model"]
    key = "res4.1.conv2.norm.weight"
    assert torch.equal(one[f"backbone.{key}"], two[f"backbone.bottom_up.{key}"])


def test_two_processes_evaluate_what_they_save(tmp_path):
    """61 images over two processes, none lost or doubled; one process finds the same with the file."""
    val = make_image_folder(tmp_path / "val", images=20, seed=1)
    shutil.copy(val / "a_red/0.png", val / "a_red/more.png")
    folders = folder_settings(make_image_folder(tmp_path / "train"), val)
    run = tmp_path / "run"
    arguments = ["--config-file", CONFIG, f"train.output_dir={run}", *folders, "--num-gpus", "2", "--dist-url", "auto"]
    done = subprocess.run(
        [sys.executable, "train_net.py", *arguments, "dataloader.train.total_batch_size=2", "train.max_iter=8"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights = f"train.init_checkpoint={run}/model_final.pth"
    train_net.cli(["--config-file", CONFIG, "--eval-only", f"train.output_dir={tmp_path / 'one'}", *folders, weights])
    accuracy = results(run)["classification"]
    assert accuracy == json.loads((tmp_path / "one/inference/results.json").read_text())["classification"]
    right = [round(accuracy[f"accuracy-{name}"] * n / 100, 6) for name, n in zip(CLASSES, (21, 20, 20), strict=True)]
    assert sum(right) == pytest.approx(accuracy["top1"] * 61 / 100)


def test_every_process_evaluates_with_the_main_ones_statistics(monkeypatch):
    """Batch norm's differ between processes, and the main one's are saved."""
    model, main = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model.running_mean.fill_(1.0)
    main.running_mean.fill_(2.0)
    main.num_batches_tracked.fill_(5)
    sent = iter(list(main.buffers()))
    monkeypatch.setattr(loop.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(loop.dist, "broadcast", lambda tensor, src: tensor.copy_(next(sent)) if src == 0 else None)
    loop.evaluate(SimpleNamespace(build_test_sets=lambda folder: iter(())), model, None)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), main.buffers(), strict=True))
    assert model.running_mean.tolist() == [2.0] * 3


# ---------------------------------------------------------------- what users get wrong
def test_class_counts_and_names(folders, tmp_path, capsys):
    message = fails(
        capsys, "--config-file", CONFIG, *folders, "model.num_classes=7", f"train.output_dir={tmp_path}/run"
    )
    assert "model.num_classes is 7, but the training data has 3 classes" in message
    (make_image_folder(tmp_path / "other") / "c_blue").rename(tmp_path / "other/d_black")
    settings = folder_settings(tmp_path / "train", tmp_path / "other")
    message = fails(capsys, "--config-file", CONFIG, *settings, f"train.output_dir={tmp_path}/run")
    assert "Training and test data have different classes (c_blue, d_black in one of them only)" in message


def test_data_that_are_not_there(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    configs = ROOT / "configs/classification"
    message = fails(capsys, "--config-file", configs / "resnet50_imagenet_90e.py", "train.device=cpu")
    assert f"Image folder {tmp_path}/imagenet/train does not exist" in message
    message = fails(capsys, "--config-file", configs / "cifar10_resnet20.py", "train.device=cpu")
    assert f"CIFAR-10 must lie in {tmp_path}/cifar-10-batches-py" in message
    (tmp_path / "train/a_red/1.png").write_bytes(b"no image")
    message = fails(capsys, "--config-file", CONFIG, *folders, f"train.output_dir={tmp_path}/run")
    assert "a_red/1.png cannot be read" in message


def test_what_only_detectors_have(folders, tmp_path, capsys):
    message = fails(capsys, "--config-file", CONFIG, *folders, *own_data_flags(tmp_path / "boxes"))
    assert "classifiers read folders: set dataloader.train.dataset.names.root" in message
    yaml = tmp_path / "c.yaml"
    yaml.write_text("MODEL:\n  META_ARCHITECTURE: ImageClassifier\n")
    assert "take one of configs/classification" in fails(capsys, "--config-file", yaml)
