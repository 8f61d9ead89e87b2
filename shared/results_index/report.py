"""benchmarks/results/index.md: how many rows the index has, and where our counts differ from the papers'."""

from collections import Counter

from .differences import COUNTED, Comparison, compare
from .entries import ROOT, Paper, all_entries
from .measured import Cost, models

FILE = ROOT / "benchmarks/results/index.md"


def render(papers: list[Paper], costs: dict[str, Cost]) -> str:
    entries = all_entries(papers)
    wanted = models(entries)
    unmeasured = [str(model) for model in wanted if str(model) not in costs]
    compared = compare(entries, costs)
    versions = sorted({(c.torch, c.engine, c.date) for c in costs.values()})
    lines = [
        "# The papers' result rows",
        "",
        "Made by `tools/index.py tables` from `projects/*/results.yaml` and `index.json`; `tools/index.py --help`",
        "says what else can be asked. How parameters and multiply-adds are counted: `shared/results_index/cost.py`.",
        "",
        *_counts(papers),
        "",
        f"{len(wanted)} models, {len(wanted) - len(unmeasured)} of them measured"
        + (f" ({'; '.join(f'torch {t}, {e} engine, {d}' for t, e, d in versions)})." if versions else "."),
        *(f"- not measured: {name}" for name in unmeasured),
        "",
        "## Differences from the papers",
        "",
        f"{len(compared)} numbers of parameters or FLOPs are printed for rows that we have. Rounded as they are, ours",
        f"differ in {sum(not c.agrees for c in compared)}:",
        "",
        "| row | | printed | ours | difference | note |",
        "|---|---|---|---|---|---|",
        *(_difference(c) for c in compared if not c.agrees),
    ]
    return "\n".join(lines) + "\n"


def _counts(papers: list[Paper]) -> list[str]:
    """One line a table: its rows, those with figures of others' (the rest are ours), with a config, without one."""
    lines = ["| paper | table | rows | with printed figures | with a config | cited |", "|---|---|---|---|---|---|"]
    total = Counter()
    for paper in papers:
        for name in dict.fromkeys(entry.table.name for entry in paper.entries):
            rows = paper.select(name)
            ours, printed = sum(bool(e.config) for e in rows), sum(bool(e.figures) for e in rows)
            numbers = {"rows": len(rows), "printed": printed, "ours": ours, "cited": len(rows) - ours}
            total.update(numbers)
            lines.append(f"| {paper.title} | {rows[0].table.label} | " + " | ".join(map(str, numbers.values())) + " |")
    return [*lines, "| all | | " + " | ".join(map(str, total.values())) + " |"]


def _difference(comparison: Comparison) -> str:
    entry, printed, ours = comparison.entry, comparison.printed, comparison.ours
    if ours is None:
        numbers = "not measured | – |"
    else:
        less = ours - float(printed)
        numbers = f"{ours:.3f} | {less:+.3f} ({less / float(printed):+.1%}) |"
    note = "; ".join(text for text in (entry.note, entry.table.note) if text) or "–"
    return f"| {entry.id} | {COUNTED[comparison.figure]} | {printed} | {numbers} {note} |"
