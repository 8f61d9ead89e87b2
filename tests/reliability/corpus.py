"""Broken inputs: what a case is, and the good folder that it breaks. The cases: bad_data.py, bad_runs.py."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from detectron2.config import LazyConfig
from shared.config import load_config
from tests.paths import ROOT
from tests.scenes import own_data_flags

LAZY, YAML = str(ROOT / "tests/tiny/faster_rcnn.py"), str(ROOT / "tests/tiny/faster_rcnn.yaml")
TRAIN, EVAL, PREDICT, COMPARE = "train", "eval-only", "predict", "compare"
WITH_DATA = (TRAIN, EVAL, COMPARE)  # commands that read annotations


class Sandbox:
    """A folder with all that a command needs, whole; a case breaks one part, or changes an argument.

    config: a config file; flags: own data; extra: further arguments; weights: "" for none.
    """

    def __init__(self, folder: Path, config: str, weights: Path):
        self.folder, self.config, self.weights = folder, config, str(weights)
        self.flags = own_data_flags(folder)
        self.output = folder / "output"
        self.input = folder / "val/images"
        self.extra: list[str] = []

    def json_file(self, part: str = "train") -> Path:
        return self.folder / part / "annotations.json"

    def picture(self, number: int = 1, part: str = "train") -> Path:
        return self.folder / part / "images" / f"{number}.png"

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def key(self, lazy: str, yaml: str) -> str:
        """That of the config's kind; a run's config.yaml is a LazyConfig's."""
        return lazy if Path(self.config).name == "config.yaml" or not self.config.endswith(".yaml") else yaml

    def command(self, name: str) -> list[str]:
        """The arguments of train_net.py, tools/predict.py or tools/compare.py."""
        config = ["--config-file", self.config] if self.config else []
        if name == PREDICT:
            weights = ["--weights", self.weights] if self.weights else []
            return [*config, *weights, "--input", str(self.input), "--output", str(self.output), *self.extra]
        if name == COMPARE:
            arm = ["--arm", f"a={self.config}", "--seeds", "0", "--examples", "0", "--runs", str(self.output)]
            return [*arm, "--", *self.flags, *self.extra]
        output = f"{self.key('train.output_dir', 'OUTPUT_DIR')}={self.output}"
        arguments = [*config, *self.flags, output, *self.extra]
        if name == EVAL:
            weights = f"{self.key('train.init_checkpoint', 'MODEL.WEIGHTS')}={self.weights}"
            arguments += ["--eval-only", *([weights] if self.weights else [])]
        return arguments


@dataclass(frozen=True)
class Case:
    """damage: breaks the sandbox. says: what the sentence must contain, "{folder}" stands for the sandbox's.
    commands: that end with it, the first in the default run; configs: of LAZY and YAML, likewise. left_out: where the
    record can be left out instead, the kind under which it is counted."""

    name: str
    damage: Callable[[Sandbox], object]
    says: tuple[str, ...]
    commands: tuple[str, ...] = (TRAIN,)
    configs: tuple[str, ...] = (LAZY,)
    left_out: str = ""

    def runs(self) -> list[tuple[str, str]]:
        """(command, config), the default run's first."""
        return [(command, config) for config in self.configs for command in self.commands]


def save_config(config: str, file: Path) -> str:
    """Save a LazyConfig as a run does, what it leaves to the user filled in; returns the text."""
    cfg = load_config(config)
    for key in OmegaConf.missing_keys(cfg):  # upstream cannot save them
        OmegaConf.update(cfg, key, "given")
    LazyConfig.save(cfg, str(file))
    return file.read_text()


# ---------------------------------------------------------------- ways to break
def edit(change: Callable[[dict], object], part: str = "train") -> Callable[[Sandbox], None]:
    """Change what an annotation file says."""

    def damage(box: Sandbox) -> None:
        content = json.loads(box.json_file(part).read_text())
        change(content)
        box.json_file(part).write_text(json.dumps(content))

    return damage


def raw(change: Callable[[bytes], bytes], part: str = "train") -> Callable[[Sandbox], None]:
    """Change the bytes of an annotation file."""
    return lambda box: box.json_file(part).write_bytes(change(box.json_file(part).read_bytes()))


def picture(change: Callable[[Path], object]) -> Callable[[Sandbox], None]:
    """Damage the second picture of the training and of the validation set."""

    def damage(box: Sandbox) -> None:
        for part in ("train", "val"):
            change(box.picture(part=part))

    return damage


def arguments(*extra: str) -> Callable[[Sandbox], None]:
    return lambda box: box.extra.extend(extra)


def config_file(name: str, content: str | bytes) -> Callable[[Sandbox], None]:
    """Another config, in the sandbox; {tiny} stands for the folder of the tiny configs."""

    def damage(box: Sandbox) -> None:
        text = content if isinstance(content, bytes) else content.replace("{tiny}", str(ROOT / "tests/tiny"))
        box.config = str(box.write(name, text))

    return damage


def save_png(file: Path, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> None:
    Image.new(mode, size).save(file)
