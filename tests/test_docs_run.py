"""Runs the documentation: every command of every shell block, and the guides' Python blocks, shortened.

tests/docs/shorten.py says what "shortened" is: two steps, small images, stand-ins for COCO and ImageNet, one or two
processes on the CPU. SLURM is absent: its script runs by bash, with a `srun` that starts its command here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import copy_repository
from tests.docs.markdown import COMMANDED, Block, blocks_of, write_file
from tests.docs.readers_files import make_coco_2017, make_imagenet, make_users_files
from tests.docs.shell import PROGRAMS, install_stand_ins, run_block
from tests.paths import ROOT

pytestmark = pytest.mark.slow

RUNNER = r"""#!/bin/bash
name=${0##*/}
case $name in
    python | torchrun | make) exec "$REAL_PYTHON" "$DOC_SHORTEN" "$name" "$@" ;;
    srun) while [[ ${1-} == -* ]]; do shift; done; exec "$@" ;;
    scontrol) printf '127.0.0.1\n' ;;
    *) exit 0 ;;  # pip, git, sbatch
esac
"""
PREAMBLE = "import numpy as np\nimage = np.zeros((96, 128, 3), np.uint8)\n"
TWO_PROCESSES = ("docs/multi_gpu.md",)
DOCUMENTS = [name for name in COMMANDED if any(b.language in ("sh", "bash") for b in blocks_of(name))]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    make_coco_2017(folder)
    make_imagenet(folder)
    return folder


@pytest.fixture(scope="module")
def users_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    make_users_files(folder)
    return folder


@pytest.fixture
def folder(tmp_path, users_files, datasets):
    """A copy of the repository with the reader's files in it, and the stand-ins beside it."""
    copy = copy_repository(tmp_path / "repository")
    for file in (ROOT / "shared/ops").glob("_C*.so"):
        os.symlink(file, copy / "shared/ops" / file.name)
    shutil.copytree(users_files, copy, dirs_exist_ok=True, symlinks=True)
    (copy / "up/bin").mkdir(parents=True)  # docs/upstream.md's environment
    (copy / "up/bin/activate").write_text("")
    for stand_ins in (tmp_path / "stand_ins", tmp_path / "venv/bin"):
        install_stand_ins(stand_ins, RUNNER)
    return copy


def environment(folder: Path, datasets: Path, name: str) -> dict[str, str]:
    return {
        "REAL_PYTHON": sys.executable,
        "DOC_SHORTEN": str(folder / "tests/docs/shorten.py"),
        "DOC_VENV": str(folder.parent / "venv"),
        "DOC_GPUS": "2" if name in TWO_PROCESSES else "1",
        "DETECTRON2_DATASETS": str(datasets),
        "DETECTRON2": os.environ["DETECTRON2"],
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_python(block: Block, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PREAMBLE + block.text]
    return subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document(name, folder, datasets):
    variables, ran = environment(folder, datasets, name), 0
    for block in blocks_of(name):
        write_file(block, folder)
        if block.language in ("sh", "bash"):
            done = run_block(block, folder, folder.parent / "stand_ins", **variables)
        elif block.language == "python" and not block.path and name.startswith(("README", "docs/")):
            done = run_python(block, folder, variables)
        else:
            continue
        assert done.returncode == 0, f"{block}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        ran += 1
    assert ran


def test_programs_have_stand_ins(tmp_path):
    install_stand_ins(tmp_path, RUNNER)
    assert sorted(os.listdir(tmp_path)) == sorted(PROGRAMS)
