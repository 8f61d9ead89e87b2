"""Runs a document's shell blocks by bash, with stand-ins for the programs that they call."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.docs.markdown import Block

PROGRAMS = ("python", "pip", "make", "torchrun", "git", "sbatch", "srun", "scontrol")
VARIABLES = ("DETECTRON2", "SHARED_OPS", "VENV", "CUDA_VISIBLE_DEVICES", "DETECTRON2_DATASETS", "OMP_NUM_THREADS")
# what SLURM sets in a job
SLURM = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": "1", "SLURM_NODEID": "0"}
RECORDER = r"""#!/bin/bash
name=${0##*/}
{ printf '%s\0' "$#" "$name" "$@"; for v in VARIABLES; do printf '%s\0' "${!v-}"; done; } >> "$DOC_CALLS"
case $name in
    srun) while [[ ${1-} == -* ]]; do shift; done; exec "$@" ;;
    scontrol) printf 'node0\nnode1\n' ;;
esac
"""
UNKNOWN = 'command_not_found_handle() { echo "no such program: $1" >&2; return 127; }\n'


@dataclass(frozen=True)
class Call:
    """A program that a block calls, its arguments, and the variables of VARIABLES that are set."""

    block: Block
    name: str
    arguments: list[str]
    variables: dict[str, str]

    def __str__(self) -> str:
        return f"{self.block}: {' '.join([self.name, *self.arguments])}"


def install_stand_ins(folder: Path, script: str = RECORDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        file = folder / name
        file.write_text(script.replace("VARIABLES", " ".join(VARIABLES)))
        file.chmod(0o755)


def run_block(block: Block, folder: Path, stand_ins: Path, **environment: str) -> subprocess.CompletedProcess:
    """In `folder`, stopping at the first command that fails."""
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR", "CXX", "CC")}
    path = f"{stand_ins}:/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", UNKNOWN + block.text],
        cwd=folder,
        env={**kept, **SLURM, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def calls_of(block: Block, folder: Path) -> list[Call]:
    """The programs that a block would call; nothing but the shell itself runs. AssertionError where bash fails."""
    stand_ins, record = folder / ".stand_ins", folder / ".calls"
    install_stand_ins(stand_ins)
    record.write_bytes(b"")
    done = run_block(block, folder, stand_ins, DOC_CALLS=str(record))
    assert done.returncode == 0, f"{block}: {done.stderr}"
    fields, calls = record.read_bytes().decode().split("\0")[:-1], []
    while fields:
        count, name = int(fields[0]), fields[1]
        arguments, rest = fields[2 : 2 + count], fields[2 + count :]
        values, fields = rest[: len(VARIABLES)], rest[len(VARIABLES) :]
        calls.append(Call(block, name, arguments, {k: v for k, v in zip(VARIABLES, values) if v}))
    return calls
