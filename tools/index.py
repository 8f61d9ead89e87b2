#!/usr/bin/env python3
"""Every result row of the six papers: which config it is, what the paper prints, what we count.

    tools/index.py search Table 2d decay weight          which config is it?
    tools/index.py show internet/table2d/decay           everything about one row, and how to train it
    tools/index.py list --paper msfm --table table2      rows; --json: the whole index
    tools/index.py check [--paper ...] [--cost]          builds every model, counts again, lists differences
    tools/index.py measure [--again]                     counts what benchmarks/results/index.json lacks
    tools/index.py tables [--check]                      writes the READMEs' tables and benchmarks/results/index.md

The rows are in projects/*/results.yaml. Nothing is computed on images: models are built and counted on the meta device.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import projects  # noqa: E402, F401  first of ours: it chooses the engine and registers every part
from shared.errors import UserError, nearest  # noqa: E402
from shared.results_index import check, measured, report, tables  # noqa: E402
from shared.results_index.entries import GROUPS, ROOT, Entry, Paper, all_entries, load_papers  # noqa: E402
from shared.results_index.measured import Cost  # noqa: E402
from shared.results_index.search import search  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--paper", default="", help="internet, labelenc, depla, musu, lip or msfm")
    which.add_argument("--table", default="", help="table2d, imagenet, ours, ...")
    which.add_argument("--config", default="", help="part of a config's path")
    rows = commands.add_parser("list", parents=[which], help="rows, one a line")
    rows.add_argument("--json", action="store_true", help="with everything that is known of them")
    found = commands.add_parser("search", parents=[which], help="rows by words, best first")
    found.add_argument("words", nargs="+")
    found.add_argument("--limit", type=int, default=10, help="rows shown at most")
    commands.add_parser("show", help="one row").add_argument("id", help="paper/table/row")
    checked = commands.add_parser("check", parents=[which], help="build and count every model again")
    checked.add_argument("--cost", action="store_true", help="multiply-adds as well, which takes some minutes")
    counted = commands.add_parser("measure", parents=[which], help="count what is not counted yet")
    counted.add_argument("--again", action="store_true", help="count everything")
    written = commands.add_parser("tables", help="write the generated tables")
    written.add_argument("--check", action="store_true", help="write nothing; fail where a table is out of date")
    return parser


def select(papers: list[Paper], args) -> list[Entry]:
    """Rows that pass the filters. UserError where none does."""
    keys = [paper.key for paper in papers]
    if args.paper and args.paper.lower() not in keys:
        raise UserError(f"--paper {args.paper} is none of {', '.join(keys)}.")
    entries = [e for e in all_entries(papers) if args.paper.lower() in ("", e.paper.key)]
    if args.table:
        known = dict.fromkeys(e.table.name for e in entries)
        if args.table.lower() not in known:
            raise UserError(f"--table {args.table} is none of {', '.join(known)}.")
        entries = [e for e in entries if e.table.name == args.table.lower()]
    entries = [e for e in entries if not args.config or any(args.config in c for c in e.configs())]
    if not entries:
        raise UserError(f"--config {args.config}: no row names such a config.")
    return entries


def line(entry: Entry) -> str:
    figures = ", ".join(f"{k} {v}" for group in GROUPS for k, v in entry.figures.get(group, {}).items())
    config = f"{entry.model}" if entry.config else f"no config ({entry.reason})"
    none = "no figures" if entry.paper.unknown == tables.NOTHING else f"figures {entry.paper.unknown}"
    return f"{entry.id}: {entry.row}\n    {config}\n    {figures or none}"


def describe(entry: Entry, costs: dict[str, Cost]) -> dict:
    """The row as plain values."""
    found = costs.get(str(entry.model))
    values = {
        "id": entry.id,
        "paper": entry.paper.title,
        "table": f"{entry.table.label}: {entry.table.title}",
        "row": entry.row,
        "config": entry.config or None,
        "overrides": list(entry.overrides),
        "reason": entry.reason,
        "also": entry.also,
        "first": entry.first,
        "plain": entry.plain,
        "flops_of": entry.flops_of,
        "set": entry.set,
        "figures": entry.figures,
        "source": entry.source,
        "note": "; ".join(text for text in (entry.note, entry.table.note) if text),
        "here": entry.here or tables.NOT_TRAINED,
        "measured": asdict(found) if found else tables.NOT_MEASURED,
    }
    if not entry.config:
        values.pop("here"), values.pop("measured")
    return {name: value for name, value in values.items() if value not in ("", [], {})}


def train_commands(entry: Entry) -> list[str]:
    """The command line that trains the row; where it is of another test set, then the one that evaluates on that."""
    tested = [o for o in entry.overrides if o.startswith("dataloader.test.")]
    command = " ".join([_trained_by(entry), *(shlex.quote(o) for o in entry.overrides if o not in tested)])
    weights = "train.init_checkpoint=model_final.pth"
    evaluation = ["python train_net.py --config-file", entry.config, "--eval-only", weights, *map(shlex.quote, tested)]
    return [command, " ".join(evaluation)] if tested else [command]


def _trained_by(entry: Entry) -> str:
    """Without overrides."""
    if entry.first and entry.paper.pipeline:
        names = {"first": entry.first, "config": entry.config, "plain": entry.plain, "name": Path(entry.config).stem}
        return entry.paper.pipeline.format(**names)
    return f"python train_net.py --config-file {entry.config} --num-gpus 8"


def show(entry: Entry, costs: dict[str, Cost]) -> str:
    rows = [
        f"{name:<10}{json.dumps(value) if isinstance(value, (dict, list)) else value}"
        for name, value in describe(entry, costs).items()
    ]
    commands = zip(("train", "evaluate"), train_commands(entry)) if entry.config else ()
    return "\n".join([*rows, *(f"{name:<10}{command}" for name, command in commands)])


def find(entries: list[Entry], name: str) -> Entry:
    by_id = {entry.id: entry for entry in entries}
    if name not in by_id:
        raise UserError(f"No row {name!r}{nearest(name, by_id, 5) or ': see tools/index.py list.'}")
    return by_id[name]


def write_tables(papers: list[Paper], only_check: bool) -> None:
    """Write every generated text that is not as it must be, or say which (UserError)."""
    costs = measured.read()
    wanted = {paper.folder / "README.md": tables.render_readme(paper, costs) for paper in papers}
    wanted[report.FILE] = report.render(papers, costs)
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    names = ", ".join(str(file.relative_to(ROOT)) for file in stale)
    if stale and only_check:
        raise UserError(f"Out of date: {names}: run tools/index.py tables.")
    for file in stale:
        file.write_text(wanted[file])
    print(f"Written: {names}." if stale else "All tables are up to date.")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    papers = load_papers()
    if args.command == "tables":
        write_tables(papers, args.check)
        return
    if args.command == "show":
        print(show(find(all_entries(papers), args.id), measured.read()))
        return
    entries = select(papers, args)
    if args.command == "measure":
        measured.drop_others(measured.models(all_entries(papers)))
        costs = measured.measure_all(measured.models(entries), again=args.again)
        print(f"{len(costs)} models in {measured.FILE.relative_to(ROOT)}.")
    elif args.command == "check":
        check.run(entries, args.cost)
    elif args.command == "search":
        found = search(entries, " ".join(args.words))
        if not found:
            raise UserError(f"No row has any of the words {' '.join(args.words)!r}.")
        print("\n".join(map(line, found[: args.limit])))
    elif args.json:
        costs = measured.read()
        print(json.dumps([describe(entry, costs) for entry in entries], indent=1))
    else:
        print("\n".join(map(line, entries)))
        print(f"{len(entries)} rows, {sum(bool(e.config) for e in entries)} with a config.")


if __name__ == "__main__":
    main()
