"""The build of the native ops: found, refused or chosen against, always with a sentence that says what to do."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from shared.ops import library
from tests.paths import ROOT

CALL = """
import torch
from shared.ops import ln_mse
print(ln_mse(torch.eye(3)[None, None], torch.ones(1, 1, 3, 3)).item())
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package that a test may damage."""
    shutil.copytree(ROOT / "shared" / "ops", tmp_path / "shared" / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "shared" / "__init__.py").touch()
    return tmp_path


def run(folder, code=CALL, **env):
    environment = {**os.environ, "PYTHONPATH": str(folder), **env}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def edit_info(folder, **changes):
    path = folder / "shared" / "ops" / "build.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_native_and_reference_give_the_same(copy):
    # eye(3): mean 1/3, variance 2/9, normalised 2/3 / sqrt(2/9) on the diagonal; ones normalise to 0.
    # Mean square of the former is its variance over itself plus eps: (2/9) / (2/9 + 1e-5).
    expected = (2 / 9) / (2 / 9 + 1e-5)
    native, reference = run(copy), run(copy, SHARED_OPS="reference")
    assert float(native.stdout) == pytest.approx(expected, rel=1e-6), native.stderr
    assert float(reference.stdout) == pytest.approx(expected, rel=1e-6), reference.stderr
    assert reference.stderr.count("SHARED_OPS=reference") == 1 and "SHARED_OPS" not in native.stderr


def test_without_a_build_importing_works_and_a_call_says_the_command(copy):
    for library_file in (copy / "shared" / "ops").glob("_C*.so"):
        library_file.unlink()
    assert run(copy, "import shared.ops").returncode == 0
    failed = run(copy)
    assert failed.returncode == 1 and "RuntimeError: The native ops are not built. Run: make setup" in failed.stderr
    assert run(copy, SHARED_OPS="reference").returncode == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"torch": "1.0"}, f"were built for torch 1.0, this is {torch.__version__}"),
        ({"cpu": "AVX1024"}, "were built for a processor with AVX1024"),
    ],
)
def test_a_build_for_something_else_is_not_loaded(copy, changes, message):
    edit_info(copy, **changes)
    failed = run(copy)
    assert failed.returncode == 1 and message in failed.stderr and library.BUILD_COMMAND in failed.stderr


def test_a_damaged_library_is_named(copy):
    (next((copy / "shared" / "ops").glob("_C*.so"))).write_bytes(b"no library")
    assert "The native ops do not load" in run(copy).stderr


def test_changed_sources_are_noticed(copy):
    with open(copy / "shared" / "ops" / "csrc" / "common.h", "a") as f:
        f.write("// changed\n")
    result = run(copy)
    assert result.returncode == 0 and "csrc has changed since" in result.stderr


def test_the_build_finds_its_own_ninja(tmp_path):
    """Else torch compiles everything again: without ninja always, after another version of ninja once."""
    own = Path(sysconfig.get_path("scripts"), "ninja")
    if not own.exists():
        pytest.skip("ninja is not installed in this environment")
    (tmp_path / "ninja").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "ninja").chmod(0o755)
    code = "import runpy, shutil; runpy.run_path('setup.py')['native_extension'](); print(shutil.which('ninja'))"
    result = run(ROOT, code, PATH=f"{tmp_path}{os.pathsep}{os.defpath}")
    assert result.stdout.splitlines()[-1:] == [str(own)], result.stderr


def test_unknown_choice(monkeypatch):
    monkeypatch.setenv("SHARED_OPS", "fast")
    with pytest.raises(ValueError, match="SHARED_OPS is 'fast': set it to 'native'"):
        library.use_reference()


def test_needs_torch_alone(copy):
    code = "import sys, shared.ops; print(sorted({'detectron2', 'fvcore', 'omegaconf', 'cv2'} & set(sys.modules)))"
    assert run(copy, code).stdout.strip() == "[]"


def test_cuda_kernels_are_in_the_library_where_nvcc_is():
    """Built, linked and loaded without a GPU: every op has its CUDA kernel, and there is code for sm_90."""
    if library.build_info()["cuda"] is None:
        pytest.skip("no nvcc when the native ops were built")
    assert "9.0" in library.build_info()["architectures"]
    names = [n for n in torch._C._dispatch_get_registrations_for_dispatch_key("CPU") if n.startswith("d2ops::")]
    assert len(names) >= 9
    on_cuda = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    assert [n for n in names if n not in on_cuda] == []
