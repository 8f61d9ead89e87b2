"""train_net.py from the command line: training, resuming, evaluating, and every kind of bad input."""

import json
import socket

import numpy as np
import pytest
import torch
from PIL import Image

import train_net
from shared.config import load_config
from shared.training import loop
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import make_coco, own_data_flags

CONFIGS = [str(ROOT / "tests/tiny/faster_rcnn.py"), str(ROOT / "tests/tiny/faster_rcnn.yaml")]
LAZY, YAML = CONFIGS


def output_dir(config, folder):
    return f"{'train.output_dir' if config == LAZY else 'OUTPUT_DIR'}={folder}"


def setting(config, lazy, yaml):
    return lazy if config == LAZY else yaml


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def fails(capsys, *argv) -> str:
    """Run, expect exit code 2 and one line on stderr that starts with "error: "; return it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        train_net.cli([str(a) for a in argv])
    assert e.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------- what works
@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_train_resume_and_eval_only(config, tmp_path):
    flags = ["--config-file", config, *own_data_flags(tmp_path)]
    run = tmp_path / "run"
    train_net.cli([*flags, output_dir(config, run)])

    for file in ("config.yaml", "metrics.json", "log.txt", "model_final.pth", "last_checkpoint"):
        assert (run / file).exists(), file
    assert any(run.glob("events.out.tfevents.*"))
    metrics = read_metrics(run)
    assert {"total_loss", "lr", "loss_cls", "loss_rpn_cls"} <= set(metrics[0])
    results = json.loads((run / "inference/results.json").read_text())
    assert {"AP", "AP50", "AP-red", "AP-green", "AP-blue"} <= set(results["bbox"])

    weights = setting(config, "train.init_checkpoint", "MODEL.WEIGHTS") + f"={run}/model_final.pth"
    other = tmp_path / "eval"
    train_net.cli([*flags, "--eval-only", output_dir(config, other), weights])
    assert json.loads((other / "inference/results.json").read_text()) == results

    more = setting(config, "train.max_iter=6", "SOLVER.MAX_ITER=6")
    train_net.cli([*flags, "--resume", output_dir(config, run), more])
    iterations = [row["iteration"] for row in read_metrics(run) if "total_loss" in row]
    assert max(iterations) == 5 and len(set(iterations)) == len(iterations)
    assert (run / "config.0.yaml").exists()  # the first part's config is kept
    train_net.cli([*flags, "--resume", output_dir(config, run), more])  # nothing left: evaluates


def test_saved_config_is_complete(tmp_path):
    """A run's config.yaml alone evaluates the run: own data, class count and names are in it."""
    run = tmp_path / "run"
    train_net.cli(["--config-file", LAZY, *own_data_flags(tmp_path), f"train.output_dir={run}"])
    before = (run / "inference/results.json").read_text()
    train_net.cli(
        [*("--config-file", str(run / "config.yaml"), "--eval-only"), f"train.init_checkpoint={run}/model_final.pth"]
    )
    assert (run / "inference_model_final/results.json").read_text() == before
    assert "class_names: [red, green, blue]" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_own_data_sets_the_class_count(config, tmp_path, capsys):
    flags = own_data_flags(tmp_path)
    for part in ("train", "val"):
        file = tmp_path / part / "annotations.json"
        data = json.loads(file.read_text())
        data["categories"].append({"id": 11, "name": "black"})
        file.write_text(json.dumps(data))
    train_net.cli(["--config-file", config, *flags, "--dry-run"])
    out = capsys.readouterr().out
    assert "parameters" in out and "FLOPs" in out and "engine" in out and "total_loss" in out


def test_dry_run_writes_nothing(tmp_path):
    run = tmp_path / "run"
    flags = own_data_flags(tmp_path)
    train_net.cli(["--config-file", LAZY, *flags, "--dry-run", f"train.output_dir={run}"])
    assert not run.exists()


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    flags = own_data_flags(tmp_path)
    train_net.cli(["--config-file", LAZY, *flags, f"train.output_dir={tmp_path / 'run'}"])
    assert "4/4" in capsys.readouterr().err


# ---------------------------------------------------------------- bad input
def test_missing_config(capsys):
    assert "does not exist" in fails(capsys, "--config-file", "no/such.py")
    assert "add --config-file" in fails(capsys, "train.max_iter=1")


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_unknown_key(config, capsys):
    key = setting(config, "train.max_itre=1", "SOLVER.MAX_ITRE=1")
    assert "did you mean" in fails(capsys, "--config-file", config, key)


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_unregistered_data(config, capsys):
    lazy = [f"dataloader.{part}.dataset.names={name}" for part, name in (("train", "digits_trian"), ("test", "x"))]
    keys = setting(config, lazy, ["DATASETS.TRAIN=('digits_trian',)"])
    message = fails(capsys, "--config-file", config, *keys)
    assert "'digits_trian' is not registered; did you mean digits_train" in message


def test_data_not_on_disk(capsys, monkeypatch, tmp_path):
    config = str(ROOT / "configs/baselines/retinanet_r50_fpn_1x.py")
    message = fails(capsys, "--config-file", config, "train.device=cpu")
    assert "'coco_2017_train' is not on disk" in message and "DETECTRON2_DATASETS" in message


def test_some_of_the_four_flags(capsys):
    message = fails(capsys, "--config-file", LAZY, "--train-json", "a.json", "--val-json", "b.json")
    assert "missing: --train-images, --val-images" in message


def test_broken_annotation_file(capsys, tmp_path):
    flags = own_data_flags(tmp_path)
    (tmp_path / "train/annotations.json").write_text("{")
    assert "is not valid JSON" in fails(capsys, "--config-file", LAZY, *flags)


def test_no_annotation_left_to_train_on(capsys, tmp_path):
    flags = own_data_flags(tmp_path)
    file = tmp_path / "train/annotations.json"
    data = json.loads(file.read_text())
    for row in data["annotations"]:
        row["iscrowd"] = 1
    file.write_text(json.dumps(data))
    message = fails(capsys, "--config-file", LAZY, *flags, f"train.output_dir={tmp_path / 'run'}")
    assert "cannot be used" in message


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_mask_training_on_data_without_masks(config, capsys, tmp_path):
    flags = own_data_flags(tmp_path)
    file = tmp_path / "train/annotations.json"
    data = json.loads(file.read_text())
    del data["annotations"][2]["segmentation"]
    file.write_text(json.dumps(data))
    key = setting(config, "dataloader.train.mapper.use_instance_mask=true", "MODEL.MASK_ON=True")
    assert "annotation 3 has no segmentation" in fails(capsys, "--config-file", config, *flags, key)


def test_several_test_sets_keep_their_predictions_apart(tmp_path):
    from shared.data.coco_sets import register_coco_set

    names = [register_coco_set(*map(str, make_coco(tmp_path / n, images=2, seed=i))) for i, n in enumerate("ab")]
    flags = own_data_flags(tmp_path)[:4]
    val = ["--val-json", str(tmp_path / "a/annotations.json"), "--val-images", str(tmp_path / "a/images")]
    run = tmp_path / "run"
    train_net.cli(["--config-file", YAML, *flags, *val, f"OUTPUT_DIR={run}"])
    cfg = load_config(
        str(run / "config.yaml"), [f"DATASETS.TEST={tuple(names)}", f"MODEL.WEIGHTS={run}/model_final.pth"]
    )
    results = loop.evaluate_only(make_run(cfg), str(run / "two"))
    assert set(results) == set(names)
    for name in names:
        assert (run / "two" / name / "coco_instances_results.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["corrupt", "truncated", "size"])
def test_bad_image_is_named(capsys, tmp_path, damage, workers):
    flags = own_data_flags(tmp_path)
    file = tmp_path / "train/images/1.png"
    if damage == "corrupt":
        file.write_bytes(b"no image")
    elif damage == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[:4000])
    else:
        Image.new("RGB", (32, 64)).save(file)
    message = fails(
        capsys,
        *("--config-file", LAZY, *flags, f"train.output_dir={tmp_path / 'run'}"),
        f"dataloader.train.num_workers={workers}",
    )
    assert str(file) in message
    assert ("is not 64 x 64" if damage == "size" else "cannot be read") in message


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_missing_weights(config, capsys, tmp_path):
    key = setting(config, "train.init_checkpoint", "MODEL.WEIGHTS")
    message = fails(
        capsys,
        *("--config-file", config, *own_data_flags(tmp_path), f"{key}={tmp_path}/no.pth"),
        *(output_dir(config, tmp_path / "run"),),
    )
    assert "no.pth' does not exist" in message


def test_weights_of_another_architecture(capsys, tmp_path):
    torch.save({"model": {"fc.weight": torch.zeros(1)}}, tmp_path / "w.pth")
    flags = ["--config-file", LAZY, *own_data_flags(tmp_path), f"train.output_dir={tmp_path / 'run'}"]
    message = fails(capsys, *flags, f"train.init_checkpoint={tmp_path}/w.pth")
    assert "0 of the model's" in message and "fc.weight" in message
    assert "--eval-only needs weights" in fails(capsys, *flags, "--eval-only")


def test_class_count_contradicts_the_data(capsys, tmp_path):
    train, root = make_coco(tmp_path)
    message = fails(
        capsys,
        *("--config-file", LAZY, "model.roi_heads.num_classes=7"),
        *(
            f"dataloader.{part}.dataset.names.{key}={value}"
            for part in ("train", "test")
            for key, value in (("json_file", train), ("image_root", root))
        ),
    )
    assert "model.roi_heads.num_classes is 7, but the training data has 3 classes" in message
    assert "set model.roi_heads.num_classes=3" in message


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_output_folder_of_another_run(config, capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text("keep me")
    message = fails(capsys, "--config-file", config, *own_data_flags(tmp_path), output_dir(config, run))
    assert "already holds a run (metrics.json): add --resume" in message
    assert (run / "metrics.json").read_text() == "keep me"


def test_output_folder_is_a_file(capsys, tmp_path):
    (tmp_path / "run").write_text("")
    flags = own_data_flags(tmp_path)
    message = fails(capsys, "--config-file", LAZY, *flags, f"train.output_dir={tmp_path}/run")
    assert "is a file" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_no_gpu(config, capsys, tmp_path):
    key = setting(config, "train.device", "MODEL.DEVICE")
    message = fails(capsys, "--config-file", config, *own_data_flags(tmp_path), f"{key}=cuda")
    assert f"no GPU is available here: set {key}=cpu" in message


@pytest.mark.parametrize("config", CONFIGS, ids=["lazy", "yaml"])
def test_mixed_precision_without_a_gpu(config, capsys, tmp_path):
    key = setting(config, "train.amp.enabled=true", "SOLVER.AMP.ENABLED=True")
    message = fails(capsys, "--config-file", config, *own_data_flags(tmp_path), key)
    assert "needs a GPU" in message and "turn it off" in message


def test_values_left_to_the_user(capsys):
    message = fails(capsys, "--config-file", LAZY)
    assert "dataloader.test.dataset.names.image_root" in message
    assert "add dataloader.test.dataset.names.image_root=VALUE" in message


def test_port_in_use(capsys, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        message = fails(
            capsys,
            *("--config-file", LAZY, *own_data_flags(tmp_path), "--num-gpus", 2),
            *("--dist-url", f"tcp://127.0.0.1:{port}", f"train.output_dir={tmp_path / 'run'}"),
        )
    assert f"port {port} cannot be opened" in message
