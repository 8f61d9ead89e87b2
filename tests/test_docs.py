"""Every command, link and Python block of the documentation: is there what it names, and would it start?

tests/test_docs_run.py runs them.
"""

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

import projects
from shared.errors import UserError
from tests.docs.commands import Document, copy_repository
from tests.docs.markdown import COMMANDED, anchors_of, blocks_of, links_of, write_file
from tests.docs.shell import calls_of
from tests.paths import ROOT

PAPERS = ("InterNet", "DEPLA", "LabelEnc", "LIP", "MSFM", "MuSu")
MARKDOWN = sorted([*COMMANDED, *(str(p.relative_to(ROOT)) for p in ROOT.glob("benchmarks/**/*.md"))])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = copy_repository(tmp_path_factory.mktemp("docs") / "repository")
    (folder / "up/bin").mkdir(parents=True)  # docs/upstream.md makes this environment
    (folder / "up/bin/activate").write_text("")
    return folder


@contextlib.contextmanager
def projects_of(folder: Path):
    """The projects that the files of a document are can be imported."""
    before = set(sys.modules)
    with mock.patch.object(projects, "__path__", [*projects.__path__, str(folder / "projects")]):
        yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def check_document(name: str, folder: Path, text: str | None = None) -> int:
    """Raises with every problem of the document's commands; returns how many commands there are."""
    document, problems, count = Document(folder), [], 0
    with projects_of(folder):
        for block in blocks_of(name, text):
            write_file(block, folder)
            if block.language not in ("sh", "bash"):
                continue
            for call in calls_of(block, folder):
                count += 1
                try:
                    document.check(call)
                except (AssertionError, UserError) as e:
                    problems.append(f"{call}\n    {e}")
    assert not problems, "\n".join(problems)
    return count


@pytest.mark.parametrize("name", COMMANDED)
def test_commands(name, repository):
    has_shell = any(b.language in ("sh", "bash") for b in blocks_of(name))
    assert (check_document(name, repository) > 0) == has_shell


@pytest.mark.parametrize(
    "command, problem",
    [
        ("python train_nett.py --config-file configs/quickstart.py", "train_nett.py does not exist"),
        ("python train_net.py --config-file configs/quickstart.py --resum-e", "unrecognized arguments: --resum-e"),
        ("python train_net.py --config-file configs/quickstart.py train.max_itr=1", "did you mean"),
        ("python train_net.py --config-file configs/quick_start.py", "configs/quick_start.py does not exist"),
        ("python tools/predict.py --config-file configs/quickstart.py --input images", "required: --output"),
        ("python train_net.py --config-file configs/quickstart.py --train-json train.json", "needs all four flags"),
        ("python train_net.py --config-file configs/quickstart.py train.init_checkpoint=x.pth", "no earlier command"),
        ("torchrun --nproc-per-node 8 train_net.py --config-file configs/no.py", "configs/no.py does not exist"),
        ("python train_net.py --config-file configs/quickstart_bottleneck.py --with msfn", "did you mean"),
        ("make quickstrat", "No rule to make target"),
        ("python -m shared.engines", "There is no module"),
        ("python -m pytest tests/test_no.py", "tests/test_no.py does not exist"),
        ("pip install -r requirement.txt", "requirement.txt does not exist"),
        ("trian", "no such program: trian"),
        ("for c in a b; do python projects/$c.py; done", "projects/a.py does not exist"),
    ],
)
def test_a_wrong_command_is_found(command, problem, repository):
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check_document("doc.md", repository, f"```sh\n{command}\n```\n")


def test_a_run_and_its_files_are_known_to_later_commands(repository):
    first = "python train_net.py --config-file configs/quickstart.py train.output_dir=runs/a train.seed=3"
    second = "python train_net.py --config-file runs/{}/config.yaml --eval-only train.init_checkpoint=runs/{}/model.pth"
    text = "```sh\n{}\n```\n"
    assert check_document("doc.md", repository, text.format(f"{first}\n{second.format('a', 'a')}")) == 2
    with pytest.raises(AssertionError, match="runs/b"):
        check_document("doc.md", repository, text.format(f"{first}\n{second.format('a', 'b')}"))
    with pytest.raises(AssertionError, match="does not exist"):
        check_document("doc.md", repository, text.format(f"{first}\n{second.format('b', 'a')}"))


# ---------------------------------------------------------------- Python blocks
@pytest.mark.parametrize("name", COMMANDED)
def test_python_blocks(name):
    """They compile, and what they import is there."""
    own = {block.path for block in blocks_of(name)}
    for block in (b for b in blocks_of(name) if b.language == "python"):
        tree = ast.parse(block.text, str(block))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                path = node.module.replace(".", "/")
                if {f"{path}.py", f"{path}/__init__.py"} & own:
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert found, f"{block}: {node.module} has no {alias.name}."
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    assert importlib.util.find_spec(alias.name), f"{block}: there is no module {alias.name}."


# ---------------------------------------------------------------- links
def broken_links(document: str, text: str) -> list[str]:
    found = []
    for link in links_of(text):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (ROOT / document).parent / path if path else ROOT / document
        if not target.exists():
            found.append(link)
        elif anchor and anchor not in anchors_of(target.read_text() if path else text):
            found.append(link)
    return found


@pytest.mark.parametrize("name", MARKDOWN)
def test_links(name):
    assert broken_links(name, (ROOT / name).read_text()) == []


def test_broken_links_are_found():
    text = "# A heading\n[a](README.md) [b](no.md) [c](#a-heading) [d](#no) [e](README.md#no) `[f](no)` [g](http://x)"
    assert broken_links("README.md", text) == ["no.md", "#no", "README.md#no"]


# ---------------------------------------------------------------- citation and changelog
def test_citation():
    """The keys that the Citation File Format 1.2.0 requires, of the file and of each reference; all six papers."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= set(citation) and citation["authors"]
    setup = (ROOT / "setup.cfg").read_text()
    assert f"version = {citation['version']}\n" in setup and f"license = {citation['license']}\n" in setup
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference) and reference["authors"]
    text = "\n".join((ROOT / f"projects/{p}/README.md").read_text() for p in PAPERS)
    titles = [r["title"] for r in citation["references"]]
    assert len(titles) == len(PAPERS)
    assert all(" ".join(title.split()) in " ".join(text.split()) for title in titles), titles


def test_changelog():
    """Keep a Changelog: the unreleased part first, only its kinds of change."""
    headings = re.findall(r"^(#+) (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == ("#", "Changelog") and headings[1] == ("##", "[Unreleased]")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {text for level, text in headings if level == "###"} <= kinds
