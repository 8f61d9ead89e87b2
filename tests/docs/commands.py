"""Whether a command could run: its program, its flags, its config with the overrides, and the files that it reads."""

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from projects.combine import combine_config
from shared.config import load_config
from shared.training.run import make_run
from shared.training.setup import own_data, parse_arguments
from tests.docs.shell import Call
from tests.paths import ROOT

FOLDERS = "configs|projects|tools|benchmarks|tests|shared|docs"
REPOSITORY_FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]+\.(?:py|yaml|md|txt)\b")
ARM = re.compile(r"^(?:[\w@+-]+=)?((?:configs|projects)/[^,\s]+\.(?:py|yaml))((?:,[^,=\s]+=\S+)*)$")
# what a reader of the documentation has: data, pictures and weights that others publish
USERS_FILES = (
    *("train.json", "val.json", "images", "val_images", "image.png", "example.png", "photos"),
    *("lip_resnet-50.pth", "resnet50-0676ba61.pth", "faster_rcnn.pth", "R-50.pkl"),
)
READ = ("weights", "input", "image", "images", "train_json", "train_images", "val_json", "val_images", "run")
WRITTEN = ("output", "runs", "markdown", "html")


class Parsed(BaseException):
    """Carries what a program's own parser made of its arguments."""

    def __init__(self, arguments: argparse.Namespace, rest: list[str]):
        self.arguments, self.rest = arguments, rest


@contextlib.contextmanager
def stop_after_parsing() -> Iterator[None]:
    """A program that parses its arguments raises Parsed instead of going on."""
    depth = 0

    def wrapped(method):
        def parse(self, *args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                result = method(self, *args, **kwargs)
            finally:
                depth -= 1
            if depth:  # one parser's method calls another
                return result
            raise Parsed(*(result if isinstance(result, tuple) else (result, [])))

        return parse

    with contextlib.ExitStack() as stack:
        for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            method = getattr(argparse.ArgumentParser, name)
            stack.enter_context(mock.patch.object(argparse.ArgumentParser, name, wrapped(method)))
        yield


def parse(script: Path, arguments: list[str]) -> Parsed:
    """By the program's own parser. AssertionError with its message where it refuses, or does not parse at all."""
    errors = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", list(sys.path)),
        contextlib.redirect_stderr(errors),
    ):
        try:
            with stop_after_parsing():
                runpy.run_path(str(script), run_name="__main__")
        except Parsed as parsed:
            return parsed
        except SystemExit as e:
            if e.code == 0 and arguments == ["--help"]:
                return Parsed(argparse.Namespace(), [])
            raise AssertionError(f"{script.name} {' '.join(arguments)}: {errors.getvalue()}") from e
    raise AssertionError(f"{script.name} parses no arguments.")


class Document:
    """The commands of one document in order: what an earlier one writes, a later one may read."""

    def __init__(self, folder: Path):
        self.folder = folder  # a copy of the repository, with the document's own files
        self.runs: dict[str, tuple[str, list[str], Sequence[str]]] = {}  # folder -> config, overrides, methods
        self.written: set[str] = set()

    def check(self, call: Call) -> None:
        """AssertionError or UserError says what is wrong with the command."""
        for argument in call.arguments:
            for file in REPOSITORY_FILE.findall(argument):
                assert list(self.folder.glob(file)), f"{file} does not exist."
        getattr(self, f"_{call.name}")(call.arguments)

    # ---------------------------------------------------------------- programs
    def _python(self, arguments: list[str]) -> None:
        first, *rest = arguments
        if first == "-m":
            self._module(rest[0], rest[1:])
        elif first == "-c":
            compile(rest[0], "<command>", "exec")
        else:
            assert (self.folder / first).is_file(), f"{first} does not exist."
            self._script(first, rest)

    def _module(self, name: str, arguments: list[str]) -> None:
        if name == "torch.distributed.run":
            return self._torchrun(arguments)
        if name == "pytest":
            return self._pytest(arguments)
        if name in ("pip", "venv"):
            return getattr(self, f"_{name}")(arguments)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin, f"There is no module {name}."
        self._script(spec.origin, arguments)

    def _script(self, script: str, arguments: list[str]) -> None:
        file = ROOT / script
        if "argparse" not in file.read_text() and "parse_arguments" not in file.read_text():
            allowed = {"setup.py": ["build_ext", "--inplace"]}.get(script, [])
            assert arguments == allowed, f"{script} takes no arguments, got {arguments}."
            return
        if arguments != ["--help"]:
            parsed = parse(file, arguments)
            self._arguments(script, parsed.arguments, parsed.rest)

    def _torchrun(self, arguments: list[str]) -> None:
        from torch.distributed.run import get_args_parser

        parsed = get_args_parser().parse_args(arguments)
        self._python([parsed.training_script, *parsed.training_script_args])

    def _srun(self, arguments: list[str]) -> None:
        """What it starts is recorded as a call of its own."""
        assert any(not a.startswith("-") for a in arguments), "srun starts nothing."

    def _scontrol(self, arguments: list[str]) -> None:
        assert arguments[:2] == ["show", "hostnames"]

    def _sbatch(self, arguments: list[str]) -> None:
        script = next(a for a in arguments if not a.startswith("-"))
        assert (self.folder / script).is_file(), f"{script} does not exist."
        subprocess.run(["bash", "-n", str(self.folder / script)], check=True)

    def _make(self, arguments: list[str]) -> None:
        done = subprocess.run(["make", "-n", *arguments], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if "quickstart" in arguments:
            self._run_of("configs/quickstart.py", ["train.output_dir=output/quickstart"])

    def _pip(self, arguments: list[str]) -> None:
        assert arguments[0] == "install", arguments
        for flag, file in zip(arguments, arguments[1:]):
            assert flag != "-r" or (self.folder / file).is_file(), f"{file} does not exist."

    def _venv(self, arguments: list[str]) -> None:
        self.written.add(arguments[-1])

    def _git(self, arguments: list[str]) -> None:
        assert arguments[0] in ("clone", "checkout", "status"), arguments

    def _pytest(self, arguments: list[str]) -> None:
        words = [a for before, a in zip(["", *arguments], arguments) if before not in ("-k", "-m", "-n", "-p")]
        for path in (a.partition("::")[0] for a in words if not a.startswith("-")):
            assert (self.folder / path).exists(), f"{path} does not exist."

    # ---------------------------------------------------------------- configs and files
    def _arguments(self, script: str, arguments: argparse.Namespace, rest: list[str]) -> None:
        values = vars(arguments)
        overrides = [o for o in values.get("opts") or values.get("overrides") or [] if isinstance(o, str)]
        for name in (*READ, "runs") if values.get("report_only") else READ:
            for path in _strings(values.get(name)):
                self._readable(path)
        if script == "tools/compare.py":
            own_data(parse_arguments(arguments.common))
        if config := values.get("config_file"):
            given = values.get("methods") or []  # as argparse leaves them: --with takes what follows it
            methods, overrides = [m for m in given if "=" not in m], [*overrides, *(m for m in given if "=" in m)]
            for one in _strings(config):
                self._config(one, overrides, methods)
            self._weights(overrides)
            if script == "train_net.py":
                own_data(arguments)
                if not (arguments.eval_only or arguments.dry_run):
                    self._run_of(config, overrides, methods)
        for name in WRITTEN:
            self.written.update(os.path.normpath(path) for path in _strings(values.get(name)))
        for text in (text for value in values.values() for text in _strings(value)):
            if (arm := ARM.match(text)) and text != config:
                load_config(str(self.folder / arm[1]), arm[2].split(",")[1:])
        if script == "tools/labelenc_pipeline.py":
            self._pipeline(arguments, rest)
        elif rest:
            parse_arguments(rest)

    def _pipeline(self, arguments: argparse.Namespace, rest: list[str]) -> None:
        given = parse_arguments(["--config-file", arguments.step2, *rest])
        for name in ("step1", "step2", "plain"):
            if config := getattr(arguments, name):
                own = [o.removeprefix(f"{name}:") for o in given.opts if ":" not in o or o.startswith(f"{name}:")]
                own = [o for o in own if name == "step2" or "label_enc" not in o]
                folder = f"{arguments.output}/{name}" if name != "plain" else arguments.output
                self._run_of(config, [*own, f"train.output_dir={folder}"])

    def _config(self, file: str, overrides: list[str], methods: Sequence[str] = ()):
        folder = os.path.normpath(os.path.dirname(file))
        if folder in self.runs and os.path.basename(file) == "config.yaml":
            file, earlier, methods = self.runs[folder]
            overrides = [*earlier, *overrides]
        combined = functools.partial(combine_config, names=methods, file=file)
        return load_config(str(self.folder / file), overrides, change=combined)

    def _run_of(self, config: str, overrides: list[str], methods: Sequence[str] = ()) -> None:
        folder = os.path.normpath(make_run(self._config(config, overrides, methods)).output_dir)
        self.runs[folder] = (config, overrides, methods)
        self.written.add(folder)

    def _weights(self, overrides: list[str]) -> None:
        for override in overrides:
            key, _, value = override.lstrip("+").partition("=")
            if key in ("train.init_checkpoint", "MODEL.WEIGHTS") and value not in ("", '""', "null"):
                self._readable(value)

    def _readable(self, path: str) -> None:
        """Of the user, of the repository, or made by an earlier command."""
        if not path or "://" in path:
            return
        path = os.path.normpath(path)
        known = path.split(os.sep)[0] in USERS_FILES or any(self.folder.glob(path) if not os.path.isabs(path) else [])
        made = any(path == folder or path.startswith(folder + os.sep) for folder in self.written)
        assert known or made, f"{path} is made by no earlier command of this document."


def _strings(value) -> Iterator[str]:
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def copy_repository(target: Path) -> Path:
    """The sources, without what is ignored by git."""
    anywhere = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache", "_C*.so")
    top = {".git", ".venv", "build", "dist", "datasets", "output", "runs"}

    def ignored(folder: str, names: list[str]) -> set[str]:
        return anywhere(folder, names) | (top & set(names) if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, target, ignore=ignored))
