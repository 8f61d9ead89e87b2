#!/usr/bin/env python3
"""Which classes gain and which lose: per-class AP of two evaluations of the same set, as sorted bars and a table.

    tools/class_changes.py --before base/inference/results.json --after ours/inference/results.json --output changes/
    tools/class_changes.py --before a/coco_instances_results.json --after b/coco_instances_results.json \\
        --annotations annotations.json --output changes/

Takes `results.json` of train_net.py, or predictions in COCO's result format, which are evaluated here. Writes
class_changes.png and class_changes.json. (Fig. 4 of "Feature Intertwiner for Object Detection", ICLR 2019.)
"""

import argparse
import contextlib
import io
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.figure import Figure  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from tabulate import tabulate  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine
from shared.data.coco_sets import category_names, read_coco_json  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.output import new_folder  # noqa: E402

PREFIX = "AP-"  # of the keys that hold a class's AP in results.json


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="results.json or predictions of the first model")
    parser.add_argument("--after", required=True, help="the same of the second")
    parser.add_argument("--annotations", default="", help="ground truth in COCO's format; for predictions")
    parser.add_argument("--task", default="bbox", choices=["bbox", "segm"])
    parser.add_argument("--output", required=True, help="a new or empty folder")
    return parser


def class_ap(file: str, annotations: str, task: str) -> dict[str, float]:
    """AP in percent by class name; nan for a class without ground truth."""
    try:
        content = json.loads(Path(file).read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"Results file {file!r} cannot be read: {e}.") from e
    if isinstance(content, list):
        return _evaluate(content, file, annotations, task)
    metrics = content.get(task) if isinstance(content, dict) else None
    if not isinstance(metrics, dict):
        raise UserError(f"Results file {file!r} has no {task!r}: give a results.json of one set, or predictions.")
    values = {key.removeprefix(PREFIX): float(value) for key, value in metrics.items() if key.startswith(PREFIX)}
    if not values:
        raise UserError(f"Results file {file!r} has no AP per class ({PREFIX}<class>): give the predictions instead.")
    return values


def _evaluate(predictions: list[dict], file: str, annotations: str, task: str) -> dict[str, float]:
    if not annotations:
        raise UserError(f"{file!r} holds predictions: add --annotations FILE, the ground truth in COCO's format.")
    if not predictions:
        raise UserError(f"{file!r} holds no predictions.")
    names, ids = category_names(annotations), sorted(c["id"] for c in read_coco_json(annotations)["categories"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        try:
            evaluation = COCOeval(truth, truth.loadRes(predictions), task)
        except (AssertionError, KeyError, TypeError) as e:
            raise UserError(f"{file!r} holds no predictions of the images in {annotations!r}: {e}.") from e
        evaluation.params.catIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class); -1: no ground truth
    values = [precision[:, :, i] for i in range(len(ids))]
    return {name: 100 * float(p[p > -1].mean()) if (p > -1).any() else math.nan for name, p in zip(names, values)}


def changes(before: dict[str, float], after: dict[str, float]) -> list[tuple[str, float, float, float]]:
    """(class, before, after, after - before), largest gain first; classes without ground truth are left out."""
    if set(before) != set(after):
        only = sorted(set(before) ^ set(after))
        raise UserError(f"The two results are of different sets: {only[0]!r} is a class of only one of them.")
    rows = [(name, before[name], after[name], after[name] - before[name]) for name in before]
    return sorted((row for row in rows if not math.isnan(row[3])), key=lambda row: (-row[3], row[0]))


def draw(rows: list[tuple[str, float, float, float]], file: Path) -> None:
    figure = Figure(figsize=(max(4.0, 0.22 * len(rows) + 1.5), 4.0), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(rows)), [row[3] for row in rows], color=["tab:blue" if r[3] >= 0 else "tab:red" for r in rows])
    axes.set_xticks(range(len(rows)), [row[0] for row in rows], rotation=90, fontsize=8)
    axes.set_ylabel("change of AP")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(x=0.01)
    figure.savefig(file, dpi=150)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    rows = changes(*(class_ap(file, args.annotations, args.task) for file in (args.before, args.after)))
    if not rows:
        raise UserError("No class has ground truth: nothing to compare.")
    folder = new_folder(args.output)
    draw(rows, folder / "class_changes.png")
    records = [dict(zip(("class", "before", "after", "change"), row)) for row in rows]
    (folder / "class_changes.json").write_text(json.dumps(records, indent=1))
    mean = [sum(row[i] for row in rows) / len(rows) for i in (1, 2, 3)]
    print(
        tabulate([*rows, ("mean", *mean)], headers=["class", "before", "after", "change"], floatfmt=("", *3 * [".2f"]))
    )
    gains = sum(row[3] > 0 for row in rows)
    print(f"{gains} of {len(rows)} classes gain: {folder}/class_changes.png")


if __name__ == "__main__":
    main()
