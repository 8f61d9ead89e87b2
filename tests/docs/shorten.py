"""Runs a command of the documentation, made short: two steps, small images, no GPU. `python` of the tests' stand-ins.

shorten.py python train_net.py --config-file ...        shorten.py torchrun --nproc-per-node 8 train_net.py ...
"""

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STEPS = 2
SHORT, LONG = 96, 128  # sides of images, px
PORT = os.environ.get("DOC_PORT", "29577")


def lazy_overrides(cfg, keep: set[str], processes: int) -> list[str]:
    """Of a LazyConfig; none of a key in `keep`, which the command itself sets to something short enough."""
    from omegaconf import OmegaConf

    short = {
        "train.max_iter": STEPS,
        "train.device": "cpu",
        "optimizer.lr": 1e-8,  # no weights that somebody trained: a step of the config's size may diverge
        "dataloader.train.num_workers": 0,
        "dataloader.test.num_workers": 0,
    }
    if "coco" in str(cfg.dataloader.train.dataset.names) or "mapper" in cfg.dataloader.train:
        several = "ClassificationMapper" in str(cfg.dataloader) or processes > 2
        short["dataloader.train.total_batch_size"] = 4 if several else 2
    for part in ("train", "test"):
        mapper = cfg.dataloader[part].get("mapper") or {}
        for i, augmentation in enumerate(mapper.get("augmentations") or []):
            if "short_edge_length" in augmentation:
                key = f"dataloader.{part}.mapper.augmentations.{i}"
                many = OmegaConf.is_list(augmentation.short_edge_length)
                short[f"{key}.short_edge_length"] = f"[{SHORT}]" if many else SHORT
                short[f"{key}.max_size"] = LONG
        for i, transform in enumerate(mapper.get("transforms") or []):
            if transform.get("size") in (224, 256):
                short[f"dataloader.{part}.mapper.transforms.{i}.size"] = 64
    start = OmegaConf.select(cfg, "train.init_checkpoint") or ""
    if start and not os.path.exists(start):
        short["train.init_checkpoint"] = '""'
    return [f"{key}={value}" for key, value in short.items() if key not in keep]


def overrides_for(config: str, opts: list[str], methods: Sequence[str] = (), processes: int = 1) -> list[str]:
    import projects  # noqa: F401
    from detectron2.config import CfgNode
    from projects.combine import combine_config
    from shared.config import load_config

    cfg = load_config(config, opts, change=functools.partial(combine_config, names=methods, file=config))
    if isinstance(cfg, CfgNode):
        sizes = [f"INPUT.MIN_SIZE_TRAIN=({SHORT},)", f"INPUT.MIN_SIZE_TEST={SHORT}", "DATALOADER.NUM_WORKERS=0"]
        return [
            "MODEL.DEVICE=cpu",
            "MODEL.WEIGHTS=",
            f"SOLVER.MAX_ITER={STEPS}",
            "SOLVER.BASE_LR=1e-8",
            "SOLVER.IMS_PER_BATCH=2",
            *sizes,
        ]
    keep = {"train.init_checkpoint"} if any("init_checkpoint" in o for o in opts) else set()
    return lazy_overrides(cfg, keep, processes)


def flag(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments else None


def with_flag(arguments: list[str], name: str, value: str) -> list[str]:
    if name not in arguments:
        return arguments
    i = arguments.index(name)
    return [*arguments[: i + 1], value, *arguments[i + 2 :]]


def shorten_train(arguments: list[str]) -> list[str]:
    import projects  # noqa: F401
    from shared.training.setup import parse_arguments

    parsed = parse_arguments(arguments)
    gpus = min(parsed.num_gpus, int(os.environ.get("DOC_GPUS", "1")))
    arguments = with_flag(arguments, "--num-gpus", str(gpus))
    arguments = with_flag(arguments, "--dist-url", f"tcp://127.0.0.1:{PORT}")
    return [
        *arguments,
        *overrides_for(parsed.config_file, parsed.opts, parsed.methods, processes=gpus * parsed.num_machines),
    ]


def shorten_tool(script: str, arguments: list[str]) -> list[str]:
    """A tool's arguments; the config.yaml of a shortened run is short by itself."""
    arguments = [a if os.path.exists(a) else re.sub(r"model_\d+\.pth$", "model_final.pth", a) for a in arguments]
    if script == "tools/labelenc_pipeline.py":
        plain = overrides_for(flag(arguments, "--plain"), [])
        return [*with_flag(arguments, "--num-gpus", "1"), *plain]
    if script == "tools/compare.py" and "--report-only" not in arguments:
        start = arguments.index("--seeds") + 1 if "--seeds" in arguments else None
        if start:
            end = next((i for i in range(start, len(arguments)) if not arguments[i].isdigit()), len(arguments))
            arguments = [*arguments[:start], "0", *arguments[end:]]
        config = next(a for a in arguments if "=" in a and ".py" in a).partition("=")[2].partition(",")[0]
        short = [o for o in overrides_for(config, []) if "max_iter" not in o]
        arguments = with_flag(arguments, "--iterations", str(STEPS))
        if "--iterations" not in arguments:
            short.append(f"train.max_iter={STEPS}")
        return [*arguments, *([] if "--" in arguments else ["--"]), *short]
    if script == "benchmarks/cost.py":
        i = arguments.index("--size")
        return [*arguments[: i + 1], "64", "64", *arguments[i + 3 :], "--rounds", "1", "--threads", "1"]
    if script == "benchmarks/assignment.py":
        return [*arguments, "--size", "64", "64", "--objects", "3", "--rounds", "1", "--threads", "1"]
    if script == "tools/predict.py" and "--limit" not in arguments:
        return [*arguments, "--limit", "2"]
    return arguments


def python(arguments: list[str]) -> int:
    first, *rest = arguments
    if first == "-m" and rest[0] == "torch.distributed.run":
        return torchrun(rest[1:])
    if first in ("-m", "-c"):
        if rest[0] in ("pip", "venv"):
            return 0
        if rest[0] == "pytest" and "-n" in rest:  # of `make test`: not this suite within itself
            rest = ["pytest", "--collect-only", "-q", "tests/test_summary.py"]
        if rest[0] == "ruff":
            rest = ["ruff", "--version"]
        return subprocess.call([sys.executable, first, *rest])
    if first == "setup.py":  # minutes; tests/ops/test_library.py is about the build
        print("built for nothing")
        return 0
    sys.path.insert(0, os.getcwd())
    if first != "train_net.py":
        return run_script(first, shorten_tool(first, rest))
    short = shorten_train(rest)
    if flag(short, "--machine-rank") == "0" and flag(short, "--num-machines") != "1":
        return start_first_machine(short)
    code = run_script(first, short) if flag(short, "--num-gpus") in (None, "1") else call(first, short)
    return code or first_machine_ended()


def call(script: str, arguments: list[str]) -> int:
    return subprocess.call([sys.executable, script, *arguments])


def run_script(script: str, arguments: list[str]) -> int:
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as e:
        return missing_packages(script, arguments) if e.code == 2 else int(e.code or 0)
    return 0


def missing_packages(script: str, arguments: list[str]) -> int:
    """ONNX's packages are no requirement: without them the command says so and ends with code 2, rightly."""
    from shared.errors import UserError
    from shared.export import FORMATS

    if script == "tools/export.py":
        try:
            FORMATS[flag(arguments, "--format")].check_packages()
        except UserError:
            return 0
    return 2


# ---------------------------------------------------------------- several machines, on this one
FIRST = Path(".first_machine")


def start_first_machine(arguments: list[str]) -> int:
    """In the background: it waits for the second."""
    command = [sys.executable, "-c", _WAIT, str(FIRST), sys.executable, "train_net.py", *arguments]
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(f"{FIRST}.log", "w"), start_new_session=True)
    return 0


_WAIT = """
import pathlib, subprocess, sys
pathlib.Path(sys.argv[1] + '.code').write_text(str(subprocess.call(sys.argv[2:])))
"""


def first_machine_ended() -> int:
    log, code = Path(f"{FIRST}.log"), Path(f"{FIRST}.code")
    if not log.exists():
        return 0
    for _ in range(600):
        if code.exists() and code.read_text():
            break
        time.sleep(0.5)
    result = int(code.read_text())
    if result:
        print(log.read_text()[-3000:], file=sys.stderr)
    log.unlink(), code.unlink()
    return result


def torchrun(arguments: list[str]) -> int:
    """One machine, two processes."""
    i = next(i for i, a in enumerate(arguments) if a.endswith(".py"))
    launcher, (script, *rest) = arguments[:i], arguments[i:]
    for name, value in (("--nproc-per-node", "2"), ("--nnodes", "1"), ("--rdzv-endpoint", f"127.0.0.1:{PORT}")):
        launcher = with_flag(launcher, name, value)
    sys.path.insert(0, os.getcwd())
    return subprocess.call([sys.executable, "-m", "torch.distributed.run", *launcher, script, *shorten_train(rest)])


def make(arguments: list[str]) -> int:
    """With the stand-ins' python as that of an environment of the reader's."""
    program = shutil.which("make", path="/usr/local/bin:/usr/bin:/bin")  # not the stand-in again
    return subprocess.call([program, f"VENV={os.environ['DOC_VENV']}", *arguments])


if __name__ == "__main__":
    program, *given = sys.argv[1:]
    sys.exit({"python": python, "torchrun": torchrun, "make": make}[program](given))
