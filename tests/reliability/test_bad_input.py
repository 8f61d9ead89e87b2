"""Every case of the corpus ends with one sentence that names the culprit and exit code 2, and changes no file.

By default each case runs once, in this process; with --slow through every command and both kinds of config."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_net
from shared.config import load_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.reliability import bad_data, bad_runs
from tests.reliability.corpus import COMPARE, EVAL, LAZY, PREDICT, TRAIN, YAML, Case, Sandbox
from tools import compare, predict

CASES = [*bad_data.CASES, *bad_runs.CASES]
FIRST = [(case, *case.runs()[0]) for case in CASES]
OTHERS = [(case, *run) for case in CASES for run in case.runs()[1:]]
MAIN = {PREDICT: predict.main, COMPARE: compare.main}
IN_PROCESSES = ["annotation bbox '[1, 1, nan, 5]'", "picture text", "config syntax error", "weights malicious"]


@pytest.fixture(scope="session")
def good_weights(tmp_path_factory) -> dict[str, Path]:
    """By config: a checkpoint of its model."""
    folder = tmp_path_factory.mktemp("weights")
    files = {LAZY: folder / "lazy.pth", YAML: folder / "yaml.pth"}
    for config, file in files.items():
        torch.save({"model": make_run(load_config(config)).build_model().state_dict()}, file)
    return files


def digests(folder: Path, without: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file() and without not in f.parents]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def check_sentence(case: Case, box: Sandbox, err: str) -> None:
    """One line that begins with "error: ", the last one (argparse puts the command's name before), and no traceback."""
    lines = err.rstrip().splitlines()
    said = [line for line in lines if re.match(r"(\S+: )?error: ", line)]
    assert len(said) == 1 and lines[-1] == said[0], err[-2000:]
    assert "Traceback" not in err, err[-3000:]
    assert len(said[0]) < 1200
    for part in case.says:
        wanted = [p.format(folder=box.folder) if "{folder}" in p else p for p in part.split("|")]
        assert any(p in said[0] for p in wanted), f"{said[0]!r} lacks {part!r}"


def run_case(case: Case, command: str, config: str, tmp_path, good_weights, capsys) -> None:
    box = Sandbox(tmp_path, config, good_weights[config])
    case.damage(box)
    before = digests(tmp_path, box.output)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        MAIN.get(command, train_net.cli)(box.command(command))
    assert e.value.code == 2
    check_sentence(case, box, capsys.readouterr().err)
    assert digests(tmp_path, box.output) == before
    assert not (tmp_path / "marker").exists()


def ids(runs) -> list[str]:
    return [f"{case.name} [{command}, {Path(config).suffix[1:]}]" for case, command, config in runs]


@pytest.mark.parametrize("case, command, config", FIRST, ids=ids(FIRST))
def test_one_sentence_and_exit_code_2(case, command, config, tmp_path, good_weights, capsys):
    run_case(case, command, config, tmp_path, good_weights, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("case, command, config", OTHERS, ids=ids(OTHERS))
def test_through_every_command(case, command, config, tmp_path, good_weights, capsys):
    run_case(case, command, config, tmp_path, good_weights, capsys)


@pytest.mark.parametrize("name", IN_PROCESSES[:1] + [pytest.param(n, marks=pytest.mark.slow) for n in IN_PROCESSES[1:]])
def test_in_a_process_of_its_own(name, tmp_path, good_weights):
    case = next(case for case in CASES if case.name == name)
    command, config = case.runs()[0]
    box = Sandbox(tmp_path, config, good_weights[config])
    case.damage(box)
    script = "tools/predict.py" if command == PREDICT else "train_net.py"
    result = subprocess.run(
        [sys.executable, script, *box.command(command)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 2, result.stderr[-2000:]
    check_sentence(case, box, result.stderr)
    assert not (tmp_path / "marker").exists()


def test_the_good_folder_is_good(tmp_path, good_weights, capsys):
    """What the cases break works, so that each fails for its own reason."""
    for config in (LAZY, YAML):
        for command in (TRAIN, EVAL, PREDICT, COMPARE):
            box = Sandbox(tmp_path / Path(config).suffix[1:] / command, config, good_weights[config])
            MAIN.get(command, train_net.cli)(box.command(command))
            assert any(box.output.rglob("*.json"))


def test_names_are_unique_and_many():
    assert len({case.name for case in CASES}) == len(CASES) >= 130
