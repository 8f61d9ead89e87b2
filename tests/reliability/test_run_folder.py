"""A run's folder has one writer; config.yaml and evaluations never take the place of others."""

import errno
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import train_net
from detectron2.utils import comm
from shared.config import config_text, load_config
from shared.errors import UserError
from shared.files import LOCK, alone_in
from shared.training.folder import alone_in_run, evaluation_folder, save_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.processes import run_forked
from tests.scenes import own_data_flags

from .runs import FORK, Training, make_config, metrics_of, train

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")
BUSY = "Another train_net.py trains in {}: wait for it, or end it."


# ---------------------------------------------------------------- one writer
def test_a_second_training_is_refused(tmp_path):
    """While the first lives, and not after a kill that leaves its workers behind."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=60", "train.eval_period=0", "train.log_period=1")
    run = tmp_path / "run"
    first = Training(arguments, run, "dataloader.train.num_workers=2")
    first.wait_for(2)
    log = (run / "log.txt").stat().st_size
    second = Training(arguments, tmp_path / "other", f"train.output_dir={run}", "--resume")
    assert second.end() == 2 and second.last_line() == "error: " + BUSY.format(run), second.errors()
    assert b"Environment" not in (run / "log.txt").read_bytes()[log:]
    assert first.process.is_alive()
    first.send(signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    train(arguments, run, "train.max_iter=12", "--resume")
    iterations = [row["iteration"] for row in metrics_of(run)]
    assert len(iterations) == len(set(iterations)) and max(iterations) >= 11


def hold(folder: Path, told: Path, child: bool) -> None:
    with alone_in(str(folder), "test"):
        if child and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        told.touch()
        time.sleep(60)


@pytest.mark.parametrize("child", [False, True])
def test_the_lock_ends_with_its_process(tmp_path, child):
    holder = FORK.Process(target=hold, args=(tmp_path, tmp_path / "told", child))
    holder.start()
    while not (tmp_path / "told").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="Another test trains in .*: wait for it"), alone_in(tmp_path, "test"):
        pass
    holder.kill()
    holder.join()
    with alone_in(tmp_path, "test"), pytest.raises(UserError), alone_in(tmp_path, "test"):  # nor twice in one process
        pass
    with alone_in(tmp_path, "test"):
        assert [file.name for file in tmp_path.glob(".*")] == [LOCK]


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(str(tmp_path), "test"), alone_in(str(tmp_path), "test"):
        pass


def in_each_process(folder: Path) -> None:
    with alone_in_run(str(folder / "run")):
        comm.synchronize()
    with pytest.raises(UserError, match="Another train_net.py trains in .*taken: wait for it") as e:
        with alone_in_run(str(folder / "taken")):
            raise AssertionError
    assert e.value.everywhere


def test_processes_of_one_run_share_the_folder(tmp_path):
    for name in ("run", "taken"):
        (tmp_path / name).mkdir()
    with alone_in(str(tmp_path / "taken"), "train_net.py"):
        run_forked(2, in_each_process, tmp_path, tmp_path)


# ---------------------------------------------------------------- config.yaml
def test_configs_of_before_keep_their_names(tmp_path):
    run = make_run(load_config(str(ROOT / "tests/tiny/faster_rcnn.yaml")))
    texts = [config_text(run.cfg)]
    save_config(run, str(tmp_path))
    (tmp_path / "config.1.yaml").write_text("of somebody")
    for seed in (7, 7, 8):
        run.cfg.SEED = seed
        texts.append(config_text(run.cfg))
        save_config(run, str(tmp_path))
    files = {"config.0.yaml": texts[0], "config.2.yaml": texts[1], "config.yaml": texts[3]}
    files["config.1.yaml"] = "of somebody"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


def test_a_first_command_that_failed_leaves_no_run(tmp_path):
    arguments = make_config("retinanet", tmp_path, "train.max_iter=2", "train.eval_period=0")
    train(arguments, tmp_path / "good")
    content = torch.load(tmp_path / "good/model_final.pth", weights_only=True)
    for value in content["model"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(content, tmp_path / "nan.pth")
    failed = Training(arguments, tmp_path / "run", f"train.init_checkpoint={tmp_path}/nan.pth")
    assert failed.end() == 2 and "holds NaN" in failed.last_line()
    train(arguments, tmp_path / "run", f"train.init_checkpoint={tmp_path}/good/model_final.pth")


@pytest.mark.parametrize(
    "line, says",
    [
        ("dataloader.train.collate_fn = lambda batch: batch", "key dataloader.train.collate_fn is <lambda>, which"),
        ("dataloader.train.collate_fn = L(lambda: list)()", "key dataloader.train.collate_fn._target_ is <lambda>"),
        ("def f(batch): return batch\ndataloader.train.collate_fn = f", "key dataloader.train.collate_fn is f, which"),
        ("model.backbone.norm = object()", "key model.backbone.norm is an object of object, which"),
    ],
)
def test_config_that_yaml_cannot_hold(tmp_path, capsys, line, says):
    """Before anything is written."""
    names = "dataloader, lr_multiplier, model, optimizer, train"
    text = f"from detectron2.config import LazyCall as L, LazyConfig\n{names} = LazyConfig.load('{LAZY}', "
    (tmp_path / "c.py").write_text(text + f"{tuple(names.split(', '))})\n{line}\n")
    arguments = ["--config-file", str(tmp_path / "c.py"), *own_data_flags(tmp_path)]
    with pytest.raises(SystemExit) as e:
        train_net.cli([*arguments, f"train.output_dir={tmp_path / 'run'}"])
    assert e.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- evaluations
def test_evaluations_keep_apart(tmp_path):
    """Beside the run's own, each in its folder; the same again replaces itself; elsewhere the first is `inference`."""
    arguments = ["--config-file", LAZY, *own_data_flags(tmp_path)]
    run, other = tmp_path / "run", tmp_path / "other"
    for folder, seed in ((run, 1), (other, 2)):
        train(arguments, folder, f"train.seed={seed}")
    files = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}

    def evaluate(weights: Path, folder: Path = run) -> None:
        train(["--config-file", f"{run}/config.yaml", "--eval-only", f"train.init_checkpoint={weights}"], folder)

    def folders(of: Path) -> list[str]:
        return sorted(file.parent.name for file in of.glob("*/results.json"))

    evaluate(run / "model_final.pth")
    assert folders(run) == ["inference", "inference_model_final"]
    own, again = (run / name / "results.json" for name in folders(run))
    assert own.read_bytes() == again.read_bytes()
    again.write_text("old")
    evaluate(run / "model_final.pth")
    assert folders(run) == ["inference", "inference_model_final"] and json.loads(again.read_text())
    evaluate(other / "model_final.pth")
    assert folders(run) == ["inference", "inference_model_final", "inference_model_final_2"]
    assert (run / "inference_model_final_2/config.yaml").exists()
    assert {f: f.read_bytes() for f in files} == files

    for weights in (run, other, run):
        evaluate(weights / "model_final.pth", tmp_path / "new")
    assert folders(tmp_path / "new") == ["inference", "inference_2"]
    training = Training(arguments, tmp_path / "new")
    assert training.end() == 2 and "already holds a run (inference/results.json)" in training.last_line()


def test_an_evaluation_that_failed_leaves_its_folder_free(tmp_path):
    run = make_run(load_config(str(ROOT / "tests/tiny/faster_rcnn.yaml"), [f"OUTPUT_DIR={tmp_path}"]))
    with pytest.raises(UserError, match="--eval-only needs weights: set MODEL.WEIGHTS=FILE"):
        evaluation_folder(run)
    run.weights = "detectron2://a/b.pkl?matching_heuristics=True"
    (tmp_path / "config.yaml").touch()
    (tmp_path / "inference_b").mkdir()
    (tmp_path / "inference_b/log.txt").touch()
    assert evaluation_folder(run) == str(tmp_path / "inference_b")
    (tmp_path / "inference_b/results.json").touch()
    assert evaluation_folder(run) == str(tmp_path / "inference_b_2")
