"""A run that is killed and resumed is, to the bit, the run that was not."""

import itertools
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import nn

import shared.files
from shared.data.stream import TrainStream
from shared.errors import UserError
from shared.training.state import ModelRemainder
from tests.paths import ROOT

from .methods import METHODS
from .runs import (
    Training,
    assert_same_run,
    differences,
    make_config,
    make_scenes,
    metrics_of,
    read,
    train,
    train_with_kills,
)

KILLS = 3


# ---------------------------------------------------------------- whole runs
@pytest.mark.parametrize(
    "name, settings",
    [
        ("retinanet", []),  # a moving average in a plain attribute, groups by aspect ratio
        ("classifier", ["train.ema.enabled=true", "dataloader.train.num_workers=2"]),  # mixes images in its workers
    ],
)
def test_killed_and_resumed(tmp_path, name, settings):
    arguments = make_config(name, tmp_path, "train.max_iter=17", *settings)
    train(arguments, tmp_path / "whole")
    seen = train_with_kills(arguments, tmp_path / "parts", 17, kills=2, seed=3)
    assert seen[0] < 16  # killed on the way
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def label_enc_settings(name: str, folder) -> list[str]:
    """Step 2 and kd begin with what another run has trained; their phases change on the way."""
    phases = ["model.label_enc.warmup_iters=12", "model.label_enc.aux_loss_iters=25"]
    if name == "labelenc_step1":
        return phases
    source = "labelenc_step1" if name == "labelenc_step2" else "retinanet"
    train(make_config(source, folder, "train.max_iter=2"), folder / source)
    weights = folder / source / "model_final.pth"
    if name == "labelenc_step2":
        return [*phases, f"+model.label_enc.step1_weights={weights}"]
    teacher = ("config", folder / source / "config.yaml"), ("weights", weights)
    return [*phases, *(f"+model.label_enc.teacher_{key}={value}" for key, value in teacher)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", METHODS)
def test_every_method(tmp_path, name, workers):
    settings = [f"dataloader.train.num_workers={workers}", "train.max_iter=40"]
    if name.startswith("labelenc"):
        settings += label_enc_settings(name, tmp_path)
    if name.startswith("classifier"):
        settings.append("train.ema.enabled=true")
    arguments = make_config(name, tmp_path, *settings)
    train(arguments, tmp_path / "whole")
    train_with_kills(arguments, tmp_path / "parts", 40, kills=KILLS, seed=workers)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["partial", "decay"])
def test_other_class_buffers(tmp_path, mode):
    """A window's sums are no persistent buffers: what is added and taken away again leaves rounding behind."""
    settings = ["train.max_iter=40", f"model.roi_heads.intertwiner.buffer.mode={mode}"]
    arguments = make_config("internet", tmp_path, *settings, "model.roi_heads.intertwiner.buffer.window=4")
    train(arguments, tmp_path / "whole")
    train_with_kills(arguments, tmp_path / "parts", 40, kills=KILLS, seed=5)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_bfloat16(tmp_path):
    settings = ["train.max_iter=20", "train.amp.enabled=true", "train.amp.dtype=bfloat16"]
    arguments = make_config("retinanet", tmp_path, *settings)
    train(arguments, tmp_path / "whole")
    train_with_kills(arguments, tmp_path / "parts", 20, kills=KILLS, seed=7)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_yaml_config(tmp_path):
    arguments = ["--config-file", str(ROOT / "tests/tiny/faster_rcnn.yaml")]
    for part, seed in (("TRAIN", 0), ("VAL", 1)):
        file, root = make_scenes(tmp_path / part, seed=seed)
        arguments += [f"DATASETS.OWN.{part}_JSON={file}", f"DATASETS.OWN.{part}_IMAGES={root}"]
    arguments += ["SOLVER.MAX_ITER=40", "SOLVER.STEPS=(20,)", "SOLVER.CHECKPOINT_PERIOD=6", "TEST.EVAL_PERIOD=16"]
    arguments += ["DATALOADER.SAMPLER_TRAIN=RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD=0.8"]
    own = ["--train-json", "TRAIN/annotations.json", "--train-images", "TRAIN/images"]
    own += ["--val-json", "VAL/annotations.json", "--val-images", "VAL/images"]
    arguments = arguments[:2] + [a if a.startswith("--") else str(tmp_path / a) for a in own] + arguments[6:]
    train(arguments, tmp_path / "whole", folder_key="OUTPUT_DIR")
    train_with_kills(arguments, tmp_path / "parts", 40, kills=KILLS, seed=6, folder_key="OUTPUT_DIR")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_random_seed_is_kept(tmp_path):
    """A run that drew its seed: what comes after a checkpoint is the same whenever it is computed."""
    arguments = make_config("retinanet", tmp_path, "train.max_iter=14", "train.seed=-1")
    train(arguments, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("model_final.pth", "model_0000009.pth"):
        (tmp_path / "parts" / name).unlink()
    shutil.copy(tmp_path / "whole/model_0000009.pth", tmp_path / "parts")
    (tmp_path / "parts/last_checkpoint").write_text("model_0000009.pth")
    train(arguments, tmp_path / "parts", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(arguments, tmp_path / "another")
    assert read(tmp_path / "another")["run"]["seed"] != read(tmp_path / "whole")["run"]["seed"]


# ---------------------------------------------------------------- killed at the worst moments
def kill_at_rename(number: int):
    """Before the n-th file of the run takes its name."""
    rename, count = os.replace, itertools.count(1)

    def replace(source, target):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    shared.files.os.replace = replace


def test_killed_while_it_writes(tmp_path):
    """Each attempt dies at another one of its renames, and the next one goes on. The detector draws its samples."""
    arguments = make_config("faster_rcnn", tmp_path, "train.max_iter=6", "train.checkpointer.period=2")
    settings = ["train.checkpointer.max_to_keep=1", "train.eval_period=4"]
    train(arguments, tmp_path / "whole", *settings)
    run, codes = tmp_path / "parts", []
    for number in (3, 2, 4, 5):
        attempt = Training(arguments, run, *settings, "--resume", before=lambda n=number: kill_at_rename(n))
        codes.append(attempt.end())
    assert codes[:3] == [-signal.SIGKILL] * 3
    train(arguments, run, *settings, "--resume")
    assert_same_run(tmp_path / "whole", run)
    assert not list(run.glob(f".*{shared.files.INCOMPLETE}"))  # what was cut off is gone
    assert sorted(p.name for p in run.glob("*.pth")) == sorted(p.name for p in (tmp_path / "whole").glob("*.pth"))


def test_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    arguments = make_config("retinanet", tmp_path, "train.max_iter=7")
    run = tmp_path / "run"
    train(arguments, run)
    (run / "model_final.pth").unlink()
    old = read(run, "model_0000004.pth")
    del old["run"]
    torch.save(old, run / "model_0000004.pth")
    (run / "last_checkpoint").write_text("model_0000004.pth")
    train(arguments, run, "--resume")
    assert read(run)["iteration"] == 6
    assert (
        "was written by an earlier version: the run goes on from it, but not bit for bit"
        in (run / "log.txt").read_text()
    )
    iterations = [row["iteration"] for row in metrics_of(run)]
    assert len(iterations) == len(set(iterations))


# ---------------------------------------------------------------- parts
RECORDS = [{"width": 3 + i % 3, "height": 4, "name": i} for i in range(11)]


def draw(record):
    return {**record, "draws": (random.random(), np.random.rand(), torch.rand(1).item())}


def stream(**arguments):
    return TrainStream(list(RECORDS), **{"mapper": draw, "seed": 5, "total_batch_size": 3, **arguments})


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_begins_where_it_is_told(workers):
    """Also across epochs; neither the workers nor what the process drew before change it."""
    expected = list(itertools.islice(stream(), 12))
    assert len({x["draws"] for batch in expected for x in batch}) == 36
    assert all(len({x["width"] > x["height"] for x in batch}) == 1 for batch in expected)
    for start in (0, 1, 5, 11):
        torch.rand(start)
        later = stream(num_workers=workers)
        later.start = start
        assert list(itertools.islice(later, 12 - start)) == expected[start:]


def test_stream_leaves_the_models_generators_alone():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2).tolist(), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    next(iter(stream()))
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected


def test_stream_replaces_what_the_mapper_gives_up():
    """Every second record, by another one; that again depends on the place in the stream alone."""
    useful = [{**record, "height": 4} for record in RECORDS]

    def mapper(record):
        return draw(record) if record["name"] % 2 else None

    def batches(start):
        found = TrainStream(useful, mapper=mapper, seed=1, total_batch_size=2, aspect_ratio_grouping=False)
        found.start = start
        return list(itertools.islice(found, 8 - start))

    assert batches(0)[3:] == batches(3) and all(x["name"] % 2 for batch in batches(0) for x in batch)
    with pytest.raises(UserError, match="returned None for all 11 items"):
        next(iter(stream(mapper=lambda record: None)))


def test_stream_needs_sizes_to_group_by():
    with pytest.raises(UserError, match="record 0 of the training data has none: set .*aspect_ratio_grouping=false"):
        TrainStream([{"name": 1}], mapper=None, seed=0, total_batch_size=1)
    with pytest.raises(UserError, match="batch size 0 must be a multiple of 1 processes"):
        stream(total_batch_size=0)


def test_what_a_state_dict_does_not_hold():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.held = 3, False
            self.register_buffer("constant", torch.ones(2), persistent=False)
            self.register_buffer("sums", torch.zeros(2), persistent=False)
            self.register_buffer("mean", torch.zeros(2))

    model = nn.Sequential(Inner())
    remainder = ModelRemainder(model)
    assert remainder.state_dict(persistent=False) == {"numbers": {}, "buffers": {}}
    model[0].normalizer = 0.3
    model[0].sums += 0.1
    model[0].mean += 5
    state = remainder.state_dict(persistent=False)
    assert state["numbers"] == {"0": {"normalizer": 0.3}} and list(state["buffers"]) == ["0.sums"]
    model[0].sums += 1  # the state is a copy
    model[0].not_resumed = ("sums",)
    assert ModelRemainder(model).state_dict(persistent=True)["buffers"].keys() == {"0.mean"}

    other = nn.Sequential(Inner())
    fresh = ModelRemainder(other)
    fresh.load_state_dict(state)
    assert other[0].normalizer == 0.3 and other[0].sums.tolist() == torch.full((2,), 0.1).tolist()
    assert differences(fresh.state_dict(persistent=False), state) == []
    # another process's: its own of the persistent ones, too
    everything = fresh.state_dict(persistent=True)["buffers"]
    assert set(everything) == {"0.sums", "0.mean"}
    remainder.drop_own(everything)
    assert set(everything) == {"0.sums", "0.mean"}  # 0 there, 5 here
    other[0].mean += 5
    everything = fresh.state_dict(persistent=True)["buffers"]
    remainder.drop_own(everything)
    assert set(everything) == {"0.sums"}


def test_lines_of_metrics_that_come_again_are_dropped(tmp_path):
    from shared.training.metrics import MetricsFile

    file = tmp_path / "metrics.json"
    rows = [json.dumps({"loss": 1.0, "iteration": i}) + "\n" for i in range(4)]
    file.write_text("".join(rows) + '{"loss": 1.0, "itera')
    writer = MetricsFile(str(tmp_path))
    writer.go_back_to(2)
    assert file.read_text() == "".join(rows[:3]) and writer.last_write == 2
    writer.go_back_to(-1)
    assert file.read_text() == ""
