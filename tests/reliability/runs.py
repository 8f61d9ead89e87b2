"""Runs of train_net.py in forked processes, which start at once and can be killed, and what they leave."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

import train_net
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from shared.classification import MixBatch
from shared.training.metrics import TIMES
from tests.image_folders import make_image_folder
from tests.paths import ROOT
from tests.scenes import make_coco

from .methods import METHODS

FORK = multiprocessing.get_context("fork")
PATIENCE = 300  # seconds until a run that does not end is given up


def make_scenes(folder: Path, images: int = 7, seed: int = 0) -> tuple[Path, Path]:
    """`make_coco` with every second image 1.5 times as wide as high."""
    file, root = make_coco(folder, images=images, seed=seed)
    coco = json.loads(file.read_text())
    for row in coco["images"][::2]:
        canvas = np.zeros((row["height"], row["width"] * 3 // 2, 3), np.uint8)
        canvas[:, : row["width"]] = np.array(Image.open(root / row["file_name"]))
        Image.fromarray(canvas).save(root / row["file_name"])
        row["width"] = canvas.shape[1]
    file.write_text(json.dumps(coco))
    return file, root


def make_config(name: str, folder: Path, *overrides: str) -> list[str]:
    """Arguments of train_net.py for a method of `METHODS` on small data below `folder`: two images a batch, an
    evaluation every eight iterations, a checkpoint every five."""
    classifier = name.startswith("classifier")
    cfg = LazyConfig.load(str(ROOT / "tests/tiny" / ("classifier.py" if classifier else "faster_rcnn.py")))
    cfg.model = METHODS[name]("BN")
    cfg.train.update(eval_period=8, log_period=3, checkpointer=dict(period=5, max_to_keep=2))
    train, val = folder / "train", folder / "val"
    if classifier:
        for part, root in (("train", train), ("test", val)):
            if not root.exists():
                make_image_folder(root)
            cfg.dataloader[part].dataset.names.root = str(root)
        cfg.dataloader.train.mapper.transforms.append(L(v2.RandomHorizontalFlip)(p=0.5))
        cfg.dataloader.train.collate_fn = L(MixBatch)(mixes=[L(v2.MixUp)(num_classes=3)])
    else:
        scenes = make_scenes(train), make_scenes(val, images=3, seed=1)
        for part, (file, root) in zip(("train", "test"), scenes):
            cfg.dataloader[part].dataset.names.update(json_file=str(file), image_root=str(root))
        cfg.dataloader.train.mapper.use_instance_mask = name == "mask_rcnn"
        cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [56, 64, 72]
    file = folder / f"{name}.yaml"
    LazyConfig.save(cfg, str(file))
    return ["--config-file", str(file), *overrides]


class Training:
    """train_net.py in a child process."""

    def __init__(
        self,
        arguments: list[str],
        run: Path,
        *more: str,
        folder_key: str = "train.output_dir",
        before: Callable[[], Any] = lambda: None,
    ):
        """before: called in the child, for example to break something there."""
        self.run, self._log = run, run.parent.parent / f"{run.parent.name}.{run.name}.stderr"
        command = [*arguments, f"{folder_key}={run}", *more]
        self.process = FORK.Process(target=_in_child, args=(command, self._log, before))
        self.process.start()

    def wait_for(self, iteration: int, seconds: float = 0.0) -> None:
        """Until metrics.json has that iteration or the run has ended, and `seconds` more."""
        self._until(lambda: any(row["iteration"] >= iteration for row in metrics_of(self.run)))
        time.sleep(seconds)

    def wait_for_file(self, name: str) -> None:
        self._until((self.run / name).exists)

    def _until(self, done: Callable[[], bool]) -> None:
        for _ in range(PATIENCE * 100):
            if done() or not self.process.is_alive():
                return
            time.sleep(0.01)
        raise AssertionError(f"{self.run} does not come on: {self.errors()[-3000:]}")

    def send(self, signum: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, signum)

    def end(self) -> int:
        """The exit code; -9 after SIGKILL."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"{self.run} does not end: {self.errors()[-3000:]}")
        return self.process.exitcode

    def errors(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def last_line(self) -> str:
        return self.errors().strip().splitlines()[-1]


def _in_child(command: list[str], log: Path, before: Callable[[], Any]) -> None:
    with open(log, "a") as errors, open(os.devnull, "w") as nowhere:
        os.dup2(errors.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
    before()
    train_net.cli(command)


def train(arguments: list[str], run: Path, *more: str, **kwargs) -> None:
    """To the end."""
    training = Training(arguments, run, *more, **kwargs)
    assert training.end() == 0, training.errors()[-3000:]


def train_with_kills(arguments: list[str], run: Path, max_iter: int, kills: int, seed: int, **kwargs) -> list[int]:
    """To the end, with `kill -9` at `kills` random moments. Returns the iterations that metrics.json had at each."""
    rng, seen = random.Random(seed), []
    for iteration in sorted(rng.sample(range(1, max_iter - 1), kills)):
        training = Training(arguments, run, "--resume", **kwargs)
        training.wait_for(iteration, rng.uniform(0, 0.3))
        training.send(signal.SIGKILL)
        assert training.end() in (-signal.SIGKILL, 0), training.errors()[-3000:]
        seen.append(max((row["iteration"] for row in metrics_of(run)), default=-1))
    train(arguments, run, "--resume", **kwargs)
    return seen


def metrics_of(run: Path) -> list[dict]:
    """The lines of metrics.json that are whole, without times."""
    try:
        lines = (run / "metrics.json").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def read(run: Path, name: str = "model_final.pth") -> dict:
    return torch.load(run / name, weights_only=True)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Everything in nested dicts and lists by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, x in items for k, v in leaves(x, f"{path}/{key}").items()}
    return {path: value}


def differences(one: Any, two: Any) -> list[str]:
    """Paths at which two checkpoints are not the same to the bit."""
    a, b = leaves(one), leaves(two)
    return sorted(a.keys() ^ b.keys()) + [path for path in a.keys() & b.keys() if _bits(a[path]) != _bits(b[path])]


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    return type(value), repr(value)  # nan equals nan, 0 not -0


def assert_same_run(whole: Path, resumed: Path) -> None:
    """Weights, buffers, optimizer, average, schedule, what the run remembers, metrics and results: to the bit."""
    one, two = read(whole), read(resumed)
    assert {"model", "trainer", "run", "iteration"} <= one.keys() and "optimizer" in one["trainer"]
    odd = differences(one, two)
    assert odd == [], odd[:20]
    rows = metrics_of(whole)
    # AP is nan where a class has no object, and nan equals no nan
    assert [json.dumps(row) for row in rows] == [json.dumps(row) for row in metrics_of(resumed)]
    assert any("total_loss" in row for row in rows) and any("/" in key for row in rows for key in row)
    results = [(run / "inference/results.json").read_text() for run in (whole, resumed)]
    assert results[0] == results[1]
