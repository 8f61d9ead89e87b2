"""The READMEs' tables of result rows, written between `<!-- results: NAME -->` and `<!-- end -->`.

What a column holds, by its kind in results.yaml:

    table                             its number, or name
    row, set, note, source            the entry's text
    config                            links to its configs, with overrides
    linked row                        the row's text, linked to the config
    first, plain                      link to that config
    paper AP APs ...                  figures of a group (also code, other), joined by " / "
    parameters, inference parameters  counted, in training and at inference
    printed parameters                counted as the paper does (see `parameters` in results.yaml)
    printed millions                  the same, rounded as the paper rounds
    extra parameters                  the same, less those of the table's `base`
    multiply-adds                     counted, G; "multiply-adds with norms": as papers on classifiers count
    counted config, counted parameters, counted FLOPs: of the model whose FLOPs the row prints
    here                              what was trained here
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from shared.errors import UserError, nearest

from .differences import rounded
from .entries import GROUPS, ROOT, Entry, Model, Paper
from .measured import Cost

NOT_MEASURED, NOT_TRAINED, NOTHING = "not measured", "not trained", "–"
BLOCK = re.compile(r"(<!-- results: (?P<name>[^ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
TEXTS = ("table", "row", "set", "note", "source")


def render_readme(paper: Paper, costs: dict[str, Cost]) -> str:
    """The README's text with all of its tables as they must be. UserError where markers and results.yaml differ."""
    file = paper.folder / "README.md"
    text = file.read_text()
    marked = [match["name"] for match in BLOCK.finditer(text)]
    for name in marked:
        if name not in paper.readme:
            raise UserError(f"{file}: {paper.file} has no table {name!r}{nearest(name, paper.readme) or '.'}")
    for name in paper.readme:
        if marked.count(name) != 1:
            raise UserError(f"{file} must have one place '<!-- results: {name} -->' ... '<!-- end -->'.")
    return BLOCK.sub(lambda m: "\n".join([m[1], *render_table(paper, m["name"], costs), "", m[3]]), text)


def render_table(paper: Paper, name: str, costs: dict[str, Cost]) -> list[str]:
    """Lines of one table in Markdown."""
    where = f"{paper.file}, readme/{name}"
    node = paper.readme[name]
    if not isinstance(node, dict) or set(node) != {"rows", "columns"}:
        raise UserError(f"{where}: expected rows and columns.")
    entries = [entry for part in node["rows"] for entry in paper.select(part)]
    columns = list(node["columns"].items())
    lines = ["| " + " | ".join(heading for heading, _ in columns) + " |", "|" + "---|" * len(columns)]
    for entry in entries:
        cells = [_cell(entry, kind, costs, where) for _, kind in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(entry: Entry, kind: str, costs: dict[str, Cost], where: str) -> str:
    group, *names = kind.split()
    if group in GROUPS and names:
        return _figures(entry, group, names)
    if kind in TEXTS:
        return _text(entry, kind)
    if kind not in LINKS and kind not in COUNTS:
        raise UserError(f"{where}: unknown kind of column {kind!r}{nearest(kind, [*TEXTS, *LINKS, *COUNTS]) or '.'}")
    if kind == "linked row" and not entry.config:
        return _text(entry, "row")
    if not entry.config:
        return NOTHING
    return LINKS[kind](entry) if kind in LINKS else COUNTS[kind](entry, costs)


def printed_count(entry: Entry, costs: dict[str, Cost]) -> int | None:
    """Parameters as the paper counts them."""
    name = "parameters_mmdetection" if entry.paper.parameters == "mmdetection" else "parameters"
    return _of(costs, entry.model, name)


def _text(entry: Entry, kind: str) -> str:
    if kind == "table":
        return entry.table.name.removeprefix("table")
    text = getattr(entry, kind).replace("|", r"\|").replace("*", r"\*") or NOTHING
    return f"**{text}**" if kind == "row" and entry.bold else text


def _figures(entry: Entry, group: str, names: list[str]) -> str:
    """Missing ones at the end are left out, others "?"."""
    found = entry.figures.get(group, {})
    values = [found.get(name, "?") for name in names]
    while values and values[-1] == "?" and names[len(values) - 1] not in found:
        values.pop()
    text = " / ".join(values) or (NOTHING if entry.table.name == "ours" else entry.paper.unknown)
    return f"**{text}**" if entry.bold and values else text


def _configs(entry: Entry, also: bool = True) -> str:
    links = [_link(entry, entry.config)]
    if also:
        links += [_link(entry, config, label) for label, config in entry.also.items()]
    return ", ".join([*links, *(f"`{override}`" for override in entry.overrides)])


def _link(entry: Entry, config: str, label: str = "") -> str:
    target = Path(os.path.relpath(ROOT / config, ROOT / "projects" / entry.paper.folder.name)).as_posix()
    return f"[{label or Path(config).stem}]({target})"


def _number(count: int | None) -> str:
    return NOT_MEASURED if count is None else f"{count:,}"


def _giga(value: float | None) -> str:
    """Three decimals for classifiers, one for detectors."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" if value < 20 else f"{value:.1f}"


def _of(costs: dict[str, Cost], model: Model, name: str):
    return getattr(costs.get(str(model)), name, None)


def _millions(entry: Entry, costs: dict[str, Cost]) -> str:
    count = printed_count(entry, costs)
    return NOT_MEASURED if count is None else rounded(count / 1e6, "0.0", entry.paper.parameters == "mmdetection")


def _extra(entry: Entry, costs: dict[str, Cost]) -> str:
    if not entry.table.base:
        return NOTHING
    ours, base = printed_count(entry, costs), printed_count(entry.paper.select(entry.table.base)[0], costs)
    return _number(None if None in (ours, base) else ours - base)


LINKS: dict[str, Callable[[Entry], str]] = {
    "config": _configs,
    "linked row": lambda e: _link(e, e.config, _text(e, "row")),
    "first": lambda e: _link(e, e.first) if e.first else NOTHING,
    "plain": lambda e: _link(e, e.plain) if e.plain else NOTHING,
    "counted config": lambda e: _link(e, e.flops_of) if e.flops_of else _configs(e, also=False),
    "here": lambda e: " / ".join(e.here.values()) or NOT_TRAINED,
}
COUNTS: dict[str, Callable[[Entry, dict[str, Cost]], str]] = {
    "parameters": lambda e, costs: _number(_of(costs, e.model, "parameters")),
    "inference parameters": lambda e, costs: _number(_of(costs, e.model, "parameters_inference")),
    "printed parameters": lambda e, costs: _number(printed_count(e, costs)),
    "printed millions": _millions,
    "extra parameters": _extra,
    "multiply-adds": lambda e, costs: _giga(_of(costs, e.model, "multiply_adds_G")),
    "multiply-adds with norms": lambda e, costs: _giga(_of(costs, e.model, "with_norms_G")),
    "counted parameters": lambda e, costs: _number(_of(costs, e.flops_model, "parameters")),
    "counted FLOPs": lambda e, costs: _giga(_of(costs, e.flops_model, "with_norms_G")),
}
