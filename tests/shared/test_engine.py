"""The choice of engine, in fresh processes."""

import os
import subprocess
import sys

import pytest

from shared import engine
from tests.paths import ROOT

HAVE_UPSTREAM = engine.upstream_spec() is not None


def run(code: str, choice: str | None, **env):
    environment = {k: v for k, v in os.environ.items() if k not in ("DETECTRON2", "PYTHONPATH")}
    if choice is not None:
        environment["DETECTRON2"] = choice
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, **env}, capture_output=True, text=True
    )


WHICH = (
    "from shared import engine; engine.activate();"
    "import detectron2; print(engine.current(), getattr(detectron2, 'EMBEDDED', False))"
)


def test_auto_prefers_upstream_and_falls_back():
    wanted = "upstream False" if HAVE_UPSTREAM else "embedded True"
    assert run(WHICH, None).stdout.strip() == wanted
    assert run(WHICH, "auto").stdout.strip() == wanted


def test_auto_never_shadows_upstream_by_a_path_entry():
    wanted = "upstream False" if HAVE_UPSTREAM else "embedded True"
    assert run(WHICH, "auto", PYTHONPATH=str(engine.EMBEDDED_ROOT)).stdout.strip() == wanted


def test_embedded_on_request():
    assert run(WHICH, "embedded").stdout.strip() == "embedded True"


@pytest.mark.skipif(HAVE_UPSTREAM, reason="upstream is installed")
def test_upstream_wanted_but_absent():
    result = run(WHICH, "upstream")
    assert "upstream Detectron2 is not installed" in result.stderr


def test_unknown_choice():
    assert "use one of auto, upstream, embedded" in run(WHICH, "detectron3").stderr


def test_engines_do_not_mix():
    other = "upstream" if engine.current() == "embedded" else "embedded"
    with pytest.raises(engine.EngineError, match="import projects before detectron2"):
        engine.activate(other)
    assert engine.activate() == engine.current()


def test_embedded_refuses_submodules_it_lacks():
    """Also where an editable install of upstream would answer for them."""
    code = (
        "import sys, types\n"
        "class Editable:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'detectron2.export':\n"
        "            from importlib.machinery import ModuleSpec\n"
        "            class Loader:\n"
        "                def create_module(self, spec): return types.ModuleType(spec.name)\n"
        "                def exec_module(self, module): pass\n"
        "            return ModuleSpec(name, Loader())\n"
        "sys.meta_path.insert(0, Editable)\n"
        "from shared import engine; engine.activate()\n"
        "import detectron2.config, detectron2.export"
    )
    result = run(code, "embedded")
    assert "The embedded Detectron2 has no module 'detectron2.export'" in result.stderr


def test_import_projects_is_enough_from_any_folder(tmp_path):
    code = "import projects, detectron2.modeling; print(projects.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "projects", result.stderr


def test_command_prints_engine_and_versions():
    result = subprocess.run([sys.executable, "-m", "shared.engine"], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith(f"engine      {engine.current()} Detectron2")
    assert "torchvision" in result.stdout


def test_choice_reaches_child_processes():
    code = (
        "from shared import engine; engine.activate('embedded')\n"
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-c', " + repr(WHICH) + "],"
        " capture_output=True, text=True).stdout)"
    )
    assert run(code, None).stdout.strip() == "embedded True"
