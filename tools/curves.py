#!/usr/bin/env python3
"""Curves of what runs wrote to metrics.json: a panel a scalar, a line a run.

    tools/curves.py --run runs/plain runs/method --scalars total_loss lr --output curves/
    tools/curves.py --run RUN --scalars "L1=labelenc/loss_*" "L2=loss_cls+loss_box_reg" --smooth 20 --output curves/

A scalar is a key of metrics.json, or [NAME=]KEY+KEY+...: their sum; `*` in a KEY stands for all keys that match.
Writes curves.png and curves.json. Without --scalars it prints the keys there are.
"""

import argparse
import fnmatch
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.figure import Figure  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine
from shared.errors import UserError, nearest  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.output import new_folder  # noqa: E402

COLUMNS = 3
Metrics = dict[int, dict[str, float]]  # by iteration


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, nargs="+", help="folders of runs, or metrics.json files")
    parser.add_argument("--scalars", nargs="+", default=[], metavar="[NAME=]KEY[+KEY...]")
    parser.add_argument("--output", default="", help="a new or empty folder")
    parser.add_argument("--smooth", type=int, default=1, help="mean over so many written points, default 1: none")
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axes")
    return parser


def read_metrics(run: str) -> Metrics:
    """The scalars of a run. Of an iteration that was trained twice, since the run was resumed, the later ones.

    UserError: no such file, or no line of it is a record; a last line cut off by a kill is passed over.
    """
    file = Path(run) / "metrics.json" if os.path.isdir(run) else Path(run)
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Run {run!r} has no readable metrics.json: {e}.") from e
    metrics: Metrics = {}
    for line in lines:
        try:
            record = json.loads(line)
            iteration = int(record.pop("iteration"))
        except (ValueError, AttributeError, KeyError, TypeError):
            continue
        metrics.setdefault(iteration, {}).update({k: v for k, v in record.items() if isinstance(v, int | float)})
    if not metrics:
        raise UserError(f"{str(file)!r} holds no record of an iteration: give a folder of train_net.py.")
    return dict(sorted(metrics.items()))


def parse_scalar(text: str) -> tuple[str, list[str]]:
    """ "L1=a+b*" -> "L1", ["a", "b*"]; without a name the text is the name."""
    name, equals, keys = text.partition("=")
    patterns = [key.strip() for key in (keys if equals else text).split("+")]
    if not name or not all(patterns):
        raise UserError(f"--scalars {text!r}: write KEY, or NAME=KEY+KEY.")
    return name, patterns


def curve(metrics: Metrics, patterns: list[str], smooth: int = 1) -> tuple[list[int], list[float]]:
    """Iterations and the sum of all keys that match a pattern, where all of them were written; smoothed backwards.

    UserError: a pattern matches nothing.
    """
    known = sorted({key for record in metrics.values() for key in record})
    keys: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise UserError(f"No scalar is called {pattern!r}{nearest(pattern, known) or '.'}")
        keys += [key for key in found if key not in keys]
    points = [(i, sum(record[k] for k in keys)) for i, record in metrics.items() if all(k in record for k in keys)]
    values = [value for _, value in points]
    means = [sum(part) / len(part) for part in (values[max(0, i + 1 - smooth) : i + 1] for i in range(len(values)))]
    return [i for i, _ in points], means


def draw(panels: dict[str, dict[str, tuple[list[int], list[float]]]], log: bool = False) -> Figure:
    """panels: {scalar: {run: (iterations, values)}}."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (scalar, lines) in zip(axes, panels.items()):
        for run, (iterations, values) in lines.items():
            axis.plot(iterations, values, label=run, linewidth=1.2)
        axis.set(title=scalar, xlabel="iteration", yscale="log" if log else "linear")
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    if len(next(iter(panels.values()))) > 1:
        axes[0].legend()
    return figure


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    if args.smooth < 1:
        raise UserError(f"--smooth must be at least 1, got {args.smooth}.")
    runs = {run: read_metrics(run) for run in args.run}
    if not args.scalars:
        for run, metrics in runs.items():
            print(f"{run}: {', '.join(sorted({key for record in metrics.values() for key in record}))}")
        return
    if not args.output:
        raise UserError("No folder to write to: add --output FOLDER.")
    scalars = dict(parse_scalar(text) for text in args.scalars)
    panels = {
        name: {run: curve(metrics, patterns, args.smooth) for run, metrics in runs.items()}
        for name, patterns in scalars.items()
    }
    folder = new_folder(args.output)
    draw(panels, args.log).savefig(folder / "curves.png", dpi=120)
    (folder / "curves.json").write_text(json.dumps(panels, indent=1))
    for name, lines in panels.items():
        for run, (iterations, values) in lines.items():
            ends = f"{values[0]:.4g} at {iterations[0]}, {values[-1]:.4g} at {iterations[-1]}" if values else "no point"
            print(f"{name}  {run}: {ends}")
    print(f"{len(panels)} panel(s) of {len(runs)} run(s): {folder}/curves.png")


if __name__ == "__main__":
    main()
