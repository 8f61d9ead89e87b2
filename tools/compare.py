#!/usr/bin/env python3
"""Train several configs on the same data with the same seeds and report what differs, against their hosts.

    tools/compare.py --arm plain=A.py --arm method=B.py --seeds 0 1 2 --runs runs/cmp -- train.eval_period=100
    tools/compare.py --arm plain=A.py --arm lip@plain=B.py,model.x=1 --arm dense=C.py --arm musu@dense=D.py \\
        --iterations 500 --jobs 2 --runs runs/cmp --markdown table.md -- --train-json ... (arguments of train_net.py)
    tools/compare.py --runs runs/cmp --report-only

An arm NAME@HOST is compared with the arm HOST; without @HOST, with the first arm. What follows the config is of that
arm alone: overrides, flags of train_net.py, or methods to combine, as in --arm both@plain=A.py,--with=msfm,depla_fpn.
Every run is `train_net.py` in RUNS/ARM/SEED with that seed; what stands after `--` goes to all of them, and `{seed}` in
an argument becomes the run's seed (to start from a checkpoint of the same seed). Finished runs are kept and unfinished
ones resumed: the same command goes on where it stopped, and stops where a config has changed since. Writes
RUNS/report.html, one file that needs nothing else, and RUNS/report.json.
Exit code: 0; 1 where a run failed, which the report says; 2 on bad input, also where every run ended with it; 130 or
143 when interrupted.
"""

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from shared.errors import UserError  # noqa: E402
from shared.files import alone_in, disk_errors, whole_file  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.comparison.arms import Plan, check, parse_arm, shown, with_hosts  # noqa: E402
from tools.comparison.gather import as_json, gather, gather_examples, metrics_of, problems, without_pictures  # noqa: E402
from tools.comparison.page import MADE_BY  # noqa: E402
from tools.comparison.results import markdown, table_rows  # noqa: E402
from tools.comparison.runs import Runner, check_records  # noqa: E402
from tools.comparison.sections import render  # noqa: E402

REPORT, NUMBERS = "report.html", "report.json"  # in the folder of the runs
COMMAND = "compare.json"  # there too: the arguments, for --report-only


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", default=[], metavar="NAME[@HOST]=CONFIG[,key=value...]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs and the report")
    parser.add_argument("--iterations", type=int, help="steps of every arm; default what its config says")
    parser.add_argument("--eval-period", type=int, help="evaluate every so many steps, for curves of AP")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; the cores are shared between them")
    parser.add_argument("--title", default="Comparison")
    parser.add_argument("--task", default="", help="of results.json, such as bbox or segm; default the first")
    parser.add_argument("--metrics", nargs="+", help="columns; default AP, AP50, AP75, APs, APm, APl")
    parser.add_argument("--examples", type=int, default=4, help="images with detections; default 4")
    parser.add_argument("--score-threshold", type=float, help="of shown detections; default: the best, one an object")
    parser.add_argument("--markdown", type=Path, help="the table as a Markdown file too; one of this tool is replaced")
    parser.add_argument("--report-only", action="store_true", help="no training: a report of what is finished")
    parser.add_argument("common", nargs="*", help="after --: for train_net.py")
    return parser


def make_plan(args: argparse.Namespace) -> Plan:
    """UserError: no arms, unknown hosts, numbers out of range."""
    if not args.arm:
        raise UserError(f"No arm: add --arm NAME=CONFIG ({args.runs} holds no {COMMAND} of a former command).")
    if min(args.seeds) < 0 or len(set(args.seeds)) != len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: each must be at least 0 and stand there once.")
    for flag, least in (("iterations", 1), ("eval_period", 0), ("jobs", 1), ("examples", 0)):
        value = getattr(args, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} must be at least {least}, got {value}.")
    arms = with_hosts([parse_arm(text) for text in args.arm])
    return Plan(arms, tuple(args.seeds), args.runs, tuple(args.common), args.iterations, args.eval_period)


def with_former(args: argparse.Namespace, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """For --report-only without arms: arms, seeds and budget of the command that trained, and that command."""
    file = args.runs / COMMAND
    if not args.report_only or args.arm or not file.exists():
        return args, argv
    try:
        former = json.loads(file.read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} cannot be read ({e}): give the arms by --arm.") from e
    trained = argument_parser().parse_args(former)
    for name in ("arm", "seeds", "iterations", "eval_period", "common"):
        setattr(args, name, getattr(trained, name))
    for name in ("title", "task", "metrics", "examples", "score_threshold"):
        if getattr(args, name) == argument_parser().get_default(name):
            setattr(args, name, getattr(trained, name))
    return args, former


def check_files(args: argparse.Namespace) -> None:
    """UserError where a file could not be written, or is another's; it is asked before hours of training."""
    ours = [args.runs / name for name in (REPORT, NUMBERS, *([] if args.report_only else [COMMAND]))]
    try:
        args.runs.mkdir(parents=True, exist_ok=True)
        if file := next((f for f in ours if not _ours(f)), None):
            raise UserError(f"{file} is not marked as made by this tool: move it, or choose another --runs folder.")
        if file := args.markdown:
            if not _ours(file) or file.resolve() in [f.resolve() for f in ours]:
                raise UserError(f"--markdown {file} is not a table of this tool: name another file, or delete it.")
            file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The report cannot be written: {e}.") from e


def _ours(file: Path) -> bool:
    """Whether it may be replaced."""
    return (
        not file.exists()
        or file.is_file()
        and (not file.stat().st_size or MADE_BY in file.read_text("utf-8", "replace"))
    )


def markdown_text(data: dict, plan: Plan, table: list[str]) -> str:
    """The table with what it needs to be repeated, without the folders of this machine."""
    machine = data["machines"][0]["cpu"] if data["machines"] else "machine not recorded"
    seeds = ", ".join(map(str, plan.seeds))
    days = " to ".join(dict.fromkeys(data["trained"])) or data["written"][:10]
    budget = [f"--iterations {plan.iterations}"] if plan.iterations is not None else []
    lines = [f"# {data['title']}", "", f"{days}, {machine}, seeds {seeds}; mean ± sample standard deviation."]
    lines[-1] += f" {MADE_BY}; all arms with:"
    lines += ["", "```", " ".join([*budget, *map(shown, plan.common)]) or "(no arguments)"]
    lines += [f"{a.name}: {' '.join([shown(a.config), *a.overrides])}" for a in plan.arms.values()]
    return "\n".join([*lines, "```", "", *table]) + "\n"


def command_lines(words: list[str]) -> str:
    """The command for a shell, a line for each option."""
    lines = [["python", "tools/compare.py"]]
    for word in words:
        lines += [[]] if word.startswith("--") else []
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines)


def report(args: argparse.Namespace, plan: Plan, command: str) -> dict:
    """Write report.json, report.html and the Markdown file, print the table. Returns all numbers."""
    data = gather(plan, args.title, command, args.task, args.metrics)
    found = gather_examples(plan, data, args.examples, args.score_threshold)
    numbers = as_json({"made_by": MADE_BY, **data, "examples": without_pictures(found)})
    write(args.runs / NUMBERS, json.dumps(numbers, indent=1))
    write(args.runs / REPORT, render(data, found))
    table = markdown(table_rows(metrics_of(data), data["hosts"], data["metrics"]), data["metrics"])
    print("\n".join(["", *table, ""]))
    if args.markdown:
        write(args.markdown, markdown_text(data, plan, table))
    return data


def write(file: Path, content: str) -> None:
    with disk_errors(str(file.parent)), whole_file(str(file)) as f:
        f.write(content.encode())


def train(args: argparse.Namespace, plan: Plan, argv: list[str]) -> None:
    """All that is not finished; argv is kept for --report-only."""
    try:
        with alone_in(str(args.runs), "tools/compare.py"):
            check_records(plan)
            write(args.runs / COMMAND, json.dumps({"made_by": MADE_BY, "arguments": argv}, indent=1))
            Runner(plan, args.jobs, say=lambda line: print(line, flush=True)).run()
    except KeyboardInterrupt as e:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr, flush=True)
        sys.exit(128 + (e.args[0] if e.args else signal.SIGINT))


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = argument_parser().parse_args(argv)
    args, trained_with = with_former(args, argv)
    plan = make_plan(args)
    check_files(args)
    if not args.report_only:
        train(args, check(plan, args.task, args.metrics or ()), argv)
    words = [word for word in trained_with if word != "--report-only"]
    data = report(args, plan, command_lines(words))
    print(f"report: {args.runs / REPORT}")
    if failed := problems(data):
        print("\n".join(f"not finished: {sentence}" for sentence in failed), file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
