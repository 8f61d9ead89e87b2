"""DefaultPredictor and tools/predict.py on configs of both kinds."""

import errno
import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import shared.files
import train_net
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from shared.config import get_collection_cfg, load_config
from shared.errors import UserError
from shared.predictor import predictor_cfg
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import predict

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")


def test_runs_the_lazy_model(tmp_path):
    lazy = LazyConfig.load(LAZY)
    model = instantiate(lazy.model).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    cfg = predictor_cfg(lazy, str(tmp_path / "w.pth"), class_names=["a", "b", "c"])
    predictor = DefaultPredictor(cfg)
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    out = predictor(image)["instances"]
    with torch.no_grad():
        tensor = torch.as_tensor(image.transpose(2, 0, 1).astype("float32"))
        expected = model([{"image": tensor, "height": 64, "width": 80}])[0]["instances"]
    assert len(out) == len(expected) > 0
    torch.testing.assert_close(out.scores, expected.scores)
    torch.testing.assert_close(out.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert predictor.metadata.thing_classes == ["a", "b", "c"]


def test_cfg_survives_its_own_dump(tmp_path):
    cfg = predictor_cfg(LazyConfig.load(LAZY), "w.pth")
    again = get_collection_cfg()
    (tmp_path / "cfg.yaml").write_text(cfg.dump())
    again.merge_from_file(str(tmp_path / "cfg.yaml"))
    keys = list(build_model(again).state_dict())
    assert keys == list(build_model(cfg).state_dict())


def test_takes_resizing_format_and_registered_names_from_the_config():
    lazy = load_config(str(ROOT / "configs/baselines/retinanet_r50_fpn_1x.py"))
    cfg = predictor_cfg(lazy, "w.pth", device="cpu")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.DEVICE == "cpu"
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes[0] == "person"
    lazy.train.class_names = ["x"]
    assert MetadataCatalog.get(predictor_cfg(lazy).DATASETS.TEST[0]).thing_classes == ["x"]


def test_refuses_what_default_predictor_cannot_do():
    lazy = LazyConfig.load(LAZY)
    lazy.dataloader.test.mapper.augmentations.pop(0)
    lazy.dataloader.test.mapper.augmentations.append({"_target_": "x", "shape": 3})
    with pytest.raises(UserError, match="must begin with ResizeShortestEdge"):
        predictor_cfg(lazy)
    with pytest.raises(UserError, match="MODEL.LAZY.YAML is empty"):
        cfg = get_collection_cfg()
        cfg.MODEL.META_ARCHITECTURE = "LazyConfigModel"
        build_model(cfg)


@pytest.mark.parametrize("kind", ["py", "yaml"])
def test_predict_command(kind, tmp_path, capsys):
    flags = own_data_flags(tmp_path)
    run = tmp_path / "run"
    output = f"train.output_dir={run}" if kind == "py" else f"OUTPUT_DIR={run}"
    train_net.cli(["--config-file", str(ROOT / f"tests/tiny/faster_rcnn.{kind}"), *flags, output])
    images = tmp_path / "val/images"
    (images / "notes.txt").write_text("no image")

    def rows(threshold, *more):
        predict.main(
            [
                *more,
                *("--config-file", str(run / "config.yaml")),
                *("--weights", str(run / "model_final.pth")),
                *("--input", str(images), str(tmp_path / "train/images/0.png")),
                *("--output", str(tmp_path / "out")),
                *("--score-threshold", str(threshold), "--limit", "4"),
            ]
        )
        return json.loads((tmp_path / "out/predictions.json").read_text())

    everything = rows(0.0)
    assert len({row["file_name"] for row in everything}) == 4
    assert {row["category"] for row in everything} <= {"red", "green", "blue"}
    middle = sorted(row["score"] for row in everything)[len(everything) // 2]
    assert rows(middle, "--overwrite") == [row for row in everything if row["score"] >= middle]
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 4
    assert Image.open(pictures[0]).size == (640, 640)  # small images are enlarged
    before = np.asarray(Image.open(images / "0.png").resize((640, 640)))
    assert (np.asarray(Image.open(pictures[0]))[..., :3] != before).any()

    (tmp_path / "out/predictions.json").unlink()
    contents = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit) as e:
        rows(0.0)
    said = f"--output {tmp_path / 'out'} holds 0.detections.png already: name another folder, or add --overwrite."
    assert e.value.code == 2 and said in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == contents


def test_predict_does_not_look_at_its_own_pictures(tmp_path):
    for name in ("b.png", "a.png", "a.detections.png"):
        (tmp_path / name).touch()
    files = predict.image_files([str(tmp_path)])
    assert [os.path.basename(file) for file in files] == ["a.png", "b.png"]
    assert predict.image_files([str(tmp_path / "a.detections.png")])  # who names it means it
    names = predict.picture_names([*files, "elsewhere/a.jpg", "a/a.jpg", *files])
    assert list(names.values()) == [f"{x}.detections.png" for x in ("a", "b", "a-2", "a-3")]


@pytest.mark.parametrize("name", ["a.detections.png", "predictions.json"])
def test_predict_on_a_full_disk(tmp_path, capsys, monkeypatch, name):
    """One sentence, and no half file."""

    @contextmanager
    def full(path, mode="wb"):
        with shared.files.whole_file(path, mode) as f:
            if os.path.basename(path) == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield f

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    torch.save({"model": instantiate(LazyConfig.load(LAZY).model).state_dict()}, tmp_path / "w.pth")
    monkeypatch.setattr(predict, "whole_file", full)
    flags = ["--config-file", LAZY, "--weights", str(tmp_path / "w.pth"), "--input", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit) as e:
        predict.main([*flags, "--output", str(tmp_path / "out")])
    assert e.value.code == 2 and "the disk is full: free some space." in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == (name == "predictions.json")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"--input": "nowhere"}, "Input 'nowhere' does not exist"),
        ({"--input": "tests/tiny"}, "holds no image"),
        ({"--weights": "no.pth"}, "'no.pth' does not exist"),
        ({"--weights": ""}, "No weights: add --weights FILE"),
        ({"--config-file": "no.py"}, "'no.py' does not exist"),
    ],
)
def test_predict_bad_input(change, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    torch.save({"model": {}}, tmp_path / "w.pth")
    flags = {
        "--config-file": LAZY,
        "--weights": str(tmp_path / "w.pth"),
        "--input": str(tmp_path / "a.png"),
        "--output": str(tmp_path / "out"),
        **change,
    }
    with pytest.raises(SystemExit) as e:
        predict.main([part for pair in flags.items() for part in pair])
    assert e.value.code == 2
    assert sentence in capsys.readouterr().err


def test_predict_names_a_broken_image(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    model = instantiate(LazyConfig.load(LAZY).model)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    with pytest.raises(SystemExit):
        predict.main(
            [
                *("--config-file", LAZY, "--weights", str(tmp_path / "w.pth")),
                *("--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")),
            ]
        )
    assert "a.png cannot be read" in capsys.readouterr().err
