#!/usr/bin/env python3
"""LabelEnc from nothing to a plain detector: step 1, export, step 2, strip, evaluation of the plain host.

    tools/labelenc_pipeline.py --step1 projects/LabelEnc/configs/retinanet_quick_step1.py \\
        --step2 projects/LabelEnc/configs/retinanet_quick_step2.py \\
        --plain projects/LabelEnc/configs/retinanet_quick_1x.py --output runs/labelenc [arguments of train_net.py]

--num-gpus, own data (--train-json ...) and overrides go to train_net.py in every part; step1:KEY=VALUE, step2:KEY=VALUE
and plain:KEY=VALUE to one part. Without --step1, step 2 starts from the file that its config names. Where the --step2
config has mode "kd", --step1 is the teacher: an ordinary detector's config.

RUN/step1 and RUN/step2 are runs of train_net.py, RUN/label_encoder.pth is what step 1 leaves to step 2. RUN itself is
then like a run of the plain host: model_final.pth, config.yaml, inference/results.json. The same command, repeated
after whatever stopped it, goes on: parts that ended are kept, a training goes on from its last checkpoint.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode  # noqa: E402
from shared.config import load_config  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.run import OWN_DATA_FLAGS  # noqa: E402
from shared.training.setup import exit_on_user_error, own_data, parse_arguments  # noqa: E402
from tools import strip_checkpoint  # noqa: E402
from tools.labelenc_weights import export  # noqa: E402
from tools.summary import summary  # noqa: E402

TRAIN_NET = str(Path(__file__).resolve().parent.parent / "train_net.py")
LAZY = SimpleNamespace(folder="train.output_dir", weights="train.init_checkpoint", module="model.label_enc.")
YAML = SimpleNamespace(folder="OUTPUT_DIR", weights="MODEL.WEIGHTS", module="MODEL.LABELENC.")
STEPS = ("step1", "step2", "plain")
GRACE = 20  # seconds a training has to end after SIGTERM


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--step1", default="", metavar="CONFIG", help='config of mode "step1"; of the teacher for KD')
    parser.add_argument("--step2", required=True, metavar="CONFIG", help='config of mode "step2" or "kd"')
    parser.add_argument("--plain", required=True, metavar="CONFIG", help="the plain host: the same without label_enc")
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of this pipeline, new or its own")
    return parser


# ---------------------------------------------------------------- what is asked for
@dataclass(frozen=True)
class Step:
    """One call of train_net.py: its config, the overrides that hold for it, how its keys are called, and its mode."""

    config: str
    overrides: list[str]
    keys: SimpleNamespace
    mode: str  # "" without LabelEnc

    def override(self, key: str, value: Path | str) -> str:
        """An override of LabelEnc's module, in the config's own form."""
        return f"{self.keys.module}{key if self.keys is LAZY else key.upper()}={value}"


@dataclass(frozen=True)
class Plan:
    """steps: by name, of STEPS ("step1" may be absent); flags: train_net.py's, for all; record: what makes two calls
    the same pipeline."""

    steps: dict[str, Step]
    flags: list[str]
    record: dict


def make_plan(args: argparse.Namespace, rest: list[str]) -> Plan:
    """Check everything that can be known before the first step. UserError names the argument."""
    given = parse_arguments(["--config-file", args.step2, *rest])
    for flag in ("resume", "eval_only", "dry_run"):
        if getattr(given, flag):
            raise UserError(f"--{flag.replace('_', '-')} is not for the pipeline: leave it out.")
    if given.config_file != args.step2 or given.num_machines > 1:
        raise UserError("--config-file and --num-machines are not for the pipeline: run the parts with train_net.py.")
    data, usual = own_data(given), parse_arguments([])
    flags = [
        word
        for name in ("num_gpus", "dist_url", *OWN_DATA_FLAGS)
        if getattr(given, name) != getattr(usual, name)
        for word in ("--" + name.replace("_", "-"), str(getattr(given, name)))
    ]
    configs = {name: getattr(args, name) for name in STEPS if getattr(args, name)}
    steps = {name: _make_step(name, config, given.opts) for name, config in configs.items()}
    kd = steps["step2"].mode == "kd"
    for name, modes in (("step1", ("",) if kd else ("step1",)), ("step2", ("step2", "kd")), ("plain", ("",))):
        if name in steps and steps[name].mode not in modes:
            has = f"mode {steps[name].mode!r}" if steps[name].mode else "no LabelEnc"
            wanted = " or ".join(f"mode {m!r}" if m else "no LabelEnc" for m in modes)
            raise UserError(f"--{name} {configs[name]} has {has}: give a config with {wanted}.")
    return Plan(steps, flags, {**configs, "overrides": given.opts, "own data": data})


def _make_step(name: str, config: str, opts: list[str]) -> Step:
    cfg = load_config(config)
    keys, known = (YAML if isinstance(cfg, CfgNode) else LAZY), bool(_mode_of(cfg))
    overrides = []
    for text in opts:
        part, colon, override = text.partition(":")
        if not (colon and part in STEPS):
            part, override = "", text
        if part not in ("", name):
            continue
        key = override.partition("=")[0].removeprefix("+")
        if key == keys.folder or (key == keys.weights and part == "plain"):
            raise UserError(f"Override {text!r}: the pipeline sets {key} itself.")
        if not part and ((name == "plain" and key == keys.weights) or (not known and key.startswith(keys.module))):
            continue
        overrides.append(override)
    return Step(config, overrides, keys, _mode_of(load_config(config, overrides)))


def _mode_of(cfg) -> str:
    """LabelEnc's mode in a config of either kind; "" without LabelEnc."""
    if isinstance(cfg, CfgNode):
        return cfg.MODEL.LABELENC.MODE if "LabelEnc" in cfg.MODEL.META_ARCHITECTURE else ""
    module = cfg.model.get("label_enc")
    return module.mode if module else ""


# ---------------------------------------------------------------- the folder
@contextlib.contextmanager
def locked(folder: Path, record: dict) -> Iterator[int]:
    """Make `folder` this pipeline's and keep others out; yields the lock's file descriptor, which trainings inherit:
    as long as one of them lives, the folder is in use.

    UserError: the folder holds something else, another pipeline, or is in use.
    """
    file = folder / "pipeline.json"
    if folder.is_dir() and any(folder.iterdir()) and not file.exists():
        raise UserError(f"--output {folder} holds something already: choose a new folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(file, "a+")
    except OSError as e:
        raise UserError(f"--output {folder} cannot be written: {e.strerror}.") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(f"--output {folder} is in use: a training of an earlier call still runs there.") from e
        lock.seek(0)
        text = lock.read()
        try:
            before = json.loads(text)
        except json.JSONDecodeError:  # empty, or a part that a kill has left
            before = record
        for key, value in record.items():
            if before.get(key) != value:
                raise UserError(
                    f"--output {folder} holds another pipeline: its {key} is {before.get(key)}, here it is {value}; "
                    f"repeat its own command, or choose a new folder."
                )
        if before is record:
            lock.truncate(0)
            lock.write(json.dumps(record, indent=1))
            lock.flush()
        yield lock.fileno()


def run_train_net(arguments: list[str], lock: int) -> int:
    """Run train_net.py in a process of its own; returns its exit code. It ends when this one is ended."""
    process = subprocess.Popen([sys.executable, TRAIN_NET, *arguments], stdin=subprocess.DEVNULL, pass_fds=[lock])
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


# ---------------------------------------------------------------- the parts
class Pipeline:
    """The parts of a plan in a folder; each has a result that exists once it has ended."""

    def __init__(self, plan: Plan, folder: Path, lock: int):
        self.plan, self.folder, self.lock = plan, folder, lock
        self.encoder, self.detector = folder / "label_encoder.pth", folder / "model_final.pth"

    def parts(self) -> list[tuple[str, Path, Callable[[], None]]]:
        """(name, result, function) in order."""
        first = self.plan.steps.get("step1")
        parts = []
        if first:
            parts.append(("step 1", self.folder / "step1/done", lambda: self.train("step1", [])))
            if first.mode:
                parts.append(("export", self.encoder, self.export))
        parts.append(("step 2", self.folder / "step2/done", lambda: self.train("step2", self._from_step1())))
        parts.append(("strip", self.detector, self.strip))
        parts.append(("evaluation", self.folder / "done", self.evaluate))
        return parts

    def _from_step1(self) -> list[str]:
        """What step 2 takes from step 1, as overrides; nothing where its config names it."""
        second, first = self.plan.steps["step2"], self.plan.steps.get("step1")
        if first is None:
            return []
        if first.mode:
            return [second.override("step1_weights", self.encoder)]
        config, weights = (self.folder / "step1" / name for name in ("config.yaml", "model_final.pth"))
        return [second.override("teacher_config", config), second.override("teacher_weights", weights)]

    def train_net(self, name: str, folder: Path, arguments: list[str]) -> None:
        step = self.plan.steps[name]
        command = ["--config-file", step.config, *self.plan.flags, *step.overrides]
        code = run_train_net([*command, f"{step.keys.folder}={folder}", *arguments], self.lock)
        if code:
            raise UserError(
                f"{name} ended with exit code {code}, see above and {folder}/log.txt: once the cause is removed, the "
                f"same command goes on from here."
            )

    def train(self, name: str, overrides: list[str]) -> None:
        folder = self.folder / name
        self.train_net(name, folder, [*overrides, "--resume"])
        (folder / "done").touch()

    def export(self) -> None:
        run = self.folder / "step1"
        with _whole(self.encoder) as part:
            torch.save(export(str(run / "config.yaml"), str(run / "model_final.pth"), []), part)

    def strip(self) -> None:
        run = self.folder / "step2"
        with _whole(self.detector) as part:
            files = ["--weights", str(run / "model_final.pth"), "--output", str(part)]
            strip_checkpoint.main(["--config-file", str(run / "config.yaml"), *files])

    def evaluate(self) -> None:
        """train_net.py demands that every entry of the plain host is in the file."""
        weights = f"{self.plan.steps['plain'].keys.weights}={self.detector}"
        self.train_net("plain", self.folder, [weights, "--eval-only"])
        shutil.copy(self.folder / "inference/config.yaml", self.folder / "config.yaml")
        (self.folder / "done").touch()

    def run(self) -> None:
        """All parts whose result is not there."""
        for name, result, function in self.parts():
            if result.exists():
                print(f"{name}: done before", flush=True)
                continue
            print(f"{name}: {self.folder}", flush=True)
            start = time.monotonic()
            function()
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """A path to write to, which becomes `file` only when it is complete."""
    part = file.with_suffix(".part" + file.suffix)
    part.unlink(missing_ok=True)
    yield part
    os.replace(part, file)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args, rest = argument_parser().parse_known_args(argv)
    plan = make_plan(args, rest)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the training ends as well
    folder = Path(args.output)
    with locked(folder, plan.record) as lock:
        Pipeline(plan, folder, lock).run()
    print(summary(folder))


if __name__ == "__main__":
    main()
