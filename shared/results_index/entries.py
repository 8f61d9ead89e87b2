"""The papers' result rows as `projects/<Name>/results.yaml` has them: the one home of every printed figure.

    paper: name, venue              parameters: all | mmdetection (how "#Param" is counted)
    unknown: what an absent figure is called ("–")      pipeline: command of rows that have `first`, with {config} etc.
    tables:
      table2d:                      the paper's own number, or a word
        title: ...                  set: what the figures were measured on
        rows:
          decay:                    together: internet/table2d/decay, an entry's name for good
            row: label, as printed
            config: file in the project's configs (".py" may be left out), or from the root ("configs/", "projects/")
            overrides: [key=value]  also: {link: another config of the same row}
            paper: {AP: 39.2, ...}  code: of the released code     other: of a third party, named in `source`
    readme: {name: {rows: [table or table/row], columns: {heading: kind}}}, see tables.py

Scalars stay text, so that "38.0" is printed as "38.0". A row without `config` says why in `reason`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from shared.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[2]
FILE = "results.yaml"
FIGURES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),  # boxes, COCO, percent
    *("mask_AP", "mask_AP50", "mask_AP75", "mask_APs", "mask_APm", "mask_APl"),
    "mAP",  # VOC, at an IoU of 0.5
    *("top1", "top5"),
    *("params_M", "flops_G"),
    *("l2", "l3", "l4", "l5"),  # a number per pyramid level
)
GROUPS = ("paper", "code", "other")  # whose figures
CONVENTIONS = ("all", "mmdetection")
FILE_KEYS = {"paper", "parameters", "unknown", "pipeline", "tables", "readme"}
TABLE_KEYS = {"title", "set", "rows", "base", "note"}
ROW_TEXTS = ("row", "config", "reason", "first", "plain", "flops_of", "set", "source", "note", "bold")
ROW_KEYS = {*ROW_TEXTS, *GROUPS, "overrides", "also", "here"}
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
FIGURE = re.compile(r"(about )?\d+(\.\d+)?|diverges|\?")


@dataclass(frozen=True)
class Model:
    """What is counted: a config, as a path from the root, with overrides."""

    config: str
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.config, *self.overrides])


@dataclass(frozen=True)
class Table:
    """One table of a paper; `base`: the row (table/row) that "extra parameters" are counted from."""

    name: str
    title: str
    base: str = ""
    note: str = ""

    @property
    def label(self) -> str:
        """ "Table 2d", or the title where the name is no number."""
        number = re.fullmatch(r"table(\d+[a-z]?)", self.name)
        return f"Table {number[1]}" if number else self.title


@dataclass(frozen=True)
class Entry:
    """One printed row (or, in tables that are not the paper's, one config of ours). See the module."""

    paper: "Paper"
    table: Table
    name: str
    row: str
    config: str = ""  # path from the root
    reason: str = ""
    overrides: tuple[str, ...] = ()
    also: dict[str, str] = field(default_factory=dict)
    first: str = ""  # config that must be trained before
    plain: str = ""  # config of the host that is evaluated
    flops_of: str = ""  # config whose FLOPs the row prints, where it is another
    set: str = ""
    source: str = ""
    note: str = ""
    bold: bool = False
    figures: dict[str, dict[str, str]] = field(default_factory=dict)  # by GROUPS
    here: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.paper.key}/{self.table.name}/{self.name}"

    @property
    def model(self) -> Model | None:
        return Model(self.config, self.overrides) if self.config else None

    @property
    def flops_model(self) -> Model | None:
        return Model(self.flops_of) if self.flops_of else self.model

    def models(self) -> Iterator[Model]:
        """All that is counted for this row. A YAML config is its .py twin's model: see `twins`."""
        also = [Model(c, self.overrides) for c in self.also.values() if c.endswith(".py")]
        yield from dict.fromkeys(m for m in (self.model, self.flops_model, *also) if m is not None)

    def twins(self) -> Iterator[Model]:
        """YAML configs of the same model."""
        yield from (Model(c) for c in self.also.values() if not c.endswith(".py"))

    def configs(self) -> Iterator[str]:
        """Every config that the row names."""
        named = (self.config, *self.also.values(), self.first, self.plain, self.flops_of)
        yield from (c for c in named if c)

    def figure(self, name: str) -> str | None:
        """As printed by the first group that has it."""
        return next((self.figures[g][name] for g in GROUPS if name in self.figures.get(g, ())), None)


@dataclass(frozen=True)
class Paper:
    """One results.yaml."""

    folder: Path
    title: str
    parameters: str
    unknown: str
    pipeline: str
    readme: dict
    entries: list[Entry] = field(default_factory=list, repr=False, compare=False)

    @property
    def key(self) -> str:
        return self.folder.name.lower()

    @property
    def file(self) -> str:
        return str(self.folder / FILE)

    def select(self, name: str) -> list[Entry]:
        """Entries of a table, or the one named table/row. UserError where there are none."""
        table, _, row = name.partition("/")
        found = [e for e in self.entries if e.table.name == table and row in ("", e.name)]
        if not found:
            known = {e.table.name for e in self.entries} | {f"{e.table.name}/{e.name}" for e in self.entries}
            raise UserError(f"{self.file}: no table or row {name!r}{nearest(name, known) or '.'}")
        return found


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # without libyaml ten times slower
    """Every scalar a str; a key that stands twice in a mapping is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_papers(root: Path = ROOT) -> list[Paper]:
    """Every results.yaml below `root`/projects. UserError names the file and the row that is not as it must be."""
    return [load_paper(file) for file in sorted(root.glob(f"projects/*/{FILE}"))]


def load_paper(file: Path) -> Paper:
    """One results.yaml; the configs that it names need not exist, see `missing_configs`."""
    try:
        content = yaml.load(file.read_text(), Loader=_TextLoader)
    except yaml.YAMLError as e:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(e).split())}") from e
    _check_keys(content, FILE_KEYS, {"paper", "tables"}, str(file))
    convention = content.get("parameters", "all")
    if convention not in CONVENTIONS:
        raise UserError(f"{file}: parameters must be one of {', '.join(CONVENTIONS)}, got {convention!r}.")
    paper = Paper(
        folder=file.parent,
        title=content["paper"],
        parameters=convention,
        unknown=content.get("unknown", "–"),
        pipeline=content.get("pipeline", ""),
        readme=content.get("readme", {}),
    )
    for name, node in _mapping(content["tables"], f"{file}, tables").items():
        where = f"{file}, {name}"
        _check_keys(node, TABLE_KEYS, {"title", "rows"}, where)
        table = Table(name, node["title"], node.get("base", ""), node.get("note", ""))
        for row, values in _mapping(node["rows"], f"{where}, rows").items():
            paper.entries.append(_entry(paper, table, row, values, node.get("set", "")))
    return paper


def _entry(paper: Paper, table: Table, name: str, node, default_set: str) -> Entry:
    where = f"{paper.file}, {table.name}/{name}"
    if not (NAME.fullmatch(name) and NAME.fullmatch(table.name)):
        raise UserError(f"{where}: a name has lower-case letters, digits and _ . - only.")
    _check_keys(node, ROW_KEYS, {"row"}, where)
    for key in ROW_TEXTS:
        if not isinstance(node.get(key, ""), str):
            raise UserError(f"{where}: {key} must be a text.")
    if bool(node.get("config")) == bool(node.get("reason")):
        raise UserError(f"{where}: give a config, or the reason why there is none.")
    overrides = node.get("overrides", [])
    if not isinstance(overrides, list) or not all(isinstance(o, str) and "=" in o for o in overrides):
        raise UserError(f"{where}: overrides must be a list of key=value, got {overrides!r}.")
    also = _mapping(node.get("also", {}), f"{where}, also")
    return Entry(
        paper=paper,
        table=table,
        name=name,
        row=node["row"],
        reason=node.get("reason", ""),
        overrides=tuple(overrides),
        also={label: _path(paper, config) for label, config in also.items()},
        **{key: _path(paper, node.get(key, "")) for key in ("config", "first", "plain", "flops_of")},
        set=node.get("set", default_set),
        source=node.get("source", ""),
        note=node.get("note", ""),
        bold=node.get("bold", "") == "yes",
        figures={group: _figures(node[group], f"{where}, {group}") for group in GROUPS if group in node},
        here=_figures(node.get("here", {}), f"{where}, here"),
    )


def _path(paper: Paper, config: str) -> str:
    """From the root; the project's own configs are written without their folder."""
    if not config:
        return ""
    config = config if config.endswith((".py", ".yaml")) else f"{config}.py"
    return config if config.startswith(("configs/", "projects/")) else f"projects/{paper.folder.name}/configs/{config}"


def _figures(node, where: str) -> dict[str, str]:
    for name, value in _mapping(node, where).items():
        if name not in FIGURES:
            raise UserError(f"{where}: unknown figure {name!r}{nearest(name, FIGURES) or '.'}")
        if not isinstance(value, str) or not FIGURE.fullmatch(value):
            raise UserError(f"{where}: {name} must be a number as printed, 'diverges' or '?', got {value!r}.")
    return node


def _mapping(node, where: str) -> dict:
    if not isinstance(node, dict):
        raise UserError(f"{where}: expected a mapping, got {node!r}.")
    return node


def _check_keys(node, known: set[str], needed: set[str], where: str) -> None:
    for key in _mapping(node, where):
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, known) or '.'}")
    for key in sorted(needed - node.keys()):
        raise UserError(f"{where}: {key} is missing.")


def all_entries(papers: Iterable[Paper]) -> list[Entry]:
    return [entry for paper in papers for entry in paper.entries]


def missing_configs(entries: Iterable[Entry], root: Path = ROOT) -> list[str]:
    """One sentence per config that a row names and that does not exist."""
    found = []
    for entry in entries:
        for config in dict.fromkeys(entry.configs()):
            if not (root / config).is_file():
                folder = (root / config).parent
                beside = [p.name for p in folder.iterdir()] if folder.is_dir() else []
                hint = nearest(Path(config).name, beside) or "."
                found.append(f"{entry.paper.file}, {entry.table.name}/{entry.name}: no config {config}{hint}")
    return found
