#!/usr/bin/env python3
"""How many RoIs lie on each level, and which are small and large there: means over training batches.

    tools/level_statistics.py --config-file output/config.yaml --weights output/model_final.pth --output levels/

Takes the RoIs that the second stage of a trained detector is trained on. (Table 3 of "Feature Intertwiner for Object
Detection", ICLR 2019.) Per level l, with s = sqrt(area) in pixels of the network's input:

    threshold     14 * 2^l pixels: the side at which one cell of the pooled features covers one cell of the map
    below, above  RoIs of the level with s up to the threshold, and beyond
    small, large  Eq. (7): RoIs of the level, and of all coarser ones. By rule "roi_size": large are all above the
                  threshold, so that the coarsest level has some too

Writes level_statistics.json and level_statistics.png: a histogram of s with the boundaries of four rules.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import projects  # noqa: E402, F401  first of ours: it chooses the engine and registers every part
from detectron2.utils.events import EventStorage  # noqa: E402
from projects.InterNet.assign import ROUNDINGS, RULES, LevelAssigner  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import load_trained  # noqa: E402
from tools.output import new_folder  # noqa: E402

RULES_SHOWN = {  # Table 2a's three and Detectron2's
    "round, base 224 (default)": {},
    "floor, base 224 (Detectron2)": {"rounding": "floor"},
    "round, base 40 (more on higher)": {"base": 40},
    "by RoI size": {"rule": "roi_size"},
}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml; a run's config.yaml")
    parser.add_argument("--weights", default="", help="checkpoint; default the config's")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--batches", type=int, default=100, help="training batches, default 100")
    parser.add_argument("--rule", default="eq6", choices=RULES)
    parser.add_argument("--base", type=float, default=224, help="pixels, of rule eq6; default 224")
    parser.add_argument("--rounding", default="round", choices=ROUNDINGS)
    parser.add_argument("--unique", action="store_true", help="drop boxes without area and repeated ones of an image")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


@torch.no_grad()
def sampled_boxes(model: nn.Module, loader: Iterable, batches: int, unique: bool = False) -> list[Tensor]:
    """Areas in square pixels of the RoIs that the second stage trains on, one tensor per batch."""
    if not (hasattr(model, "proposal_generator") and hasattr(model, "roi_heads")):
        raise UserError(f"{type(model).__name__} has no RoIs: give the config of a two-stage detector.")
    model.train()
    areas = []
    for batch in itertools.islice(loader, batches):
        targets = [x["instances"].to(model.device) for x in batch]
        images = model.preprocess_image(batch)
        with EventStorage():
            proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), targets)
            proposals = model.roi_heads.label_and_sample_proposals(proposals, targets)
        boxes = [p.proposal_boxes for p in proposals]
        if unique:
            boxes = [type(b)(b.tensor[b.nonempty()].unique(dim=0)) for b in boxes]
        areas.append(torch.cat([b.area() for b in boxes]).cpu())
    if not areas:
        raise UserError("The training set gave no batch: --batches must be at least 1.")
    return areas


def table(areas: list[Tensor], assigner: LevelAssigner) -> list[dict]:
    """One row a level, finest first; counts are means per batch."""
    together, rows = torch.cat(areas), []
    levels, sides = assigner.of_areas(together), together.clamp(min=0).sqrt()
    for i in range(assigner.num_levels):
        on = levels == i
        threshold = assigner.roi_size * 2 ** (assigner.first_level + i)
        large = sides > threshold if assigner.rule == "roi_size" else levels > i
        counts = {"small": on, "large": large, "below": on & (sides <= threshold), "above": on & (sides > threshold)}
        row = {"level": assigner.first_level + i, "share": float(on.float().mean()), "threshold": threshold}
        rows.append(row | {name: int(mask.sum()) / len(areas) for name, mask in counts.items()})
    return rows


def boundaries(assigner: LevelAssigner) -> list[float]:
    """The sides in pixels at which the level changes, found by trying the rule itself, to 0.01 %."""
    sides = torch.logspace(0, 12, 400_000, base=2, dtype=torch.float64)
    changes = assigner.of_areas(sides.square()).diff().nonzero()[:, 0]
    return [float(sides[i + 1]) for i in changes]


def draw(areas: list[Tensor], file: Path) -> None:
    sides = torch.cat(areas).clamp(min=1).sqrt()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    edges = torch.logspace(0, float(sides.max().log2().ceil().clamp(min=1)), 61, base=2)
    axes.hist(sides.numpy(), bins=edges.numpy(), color="lightgray")
    for (name, rule), colour, style in zip(RULES_SHOWN.items(), ("C0", "C1", "C2", "C3"), ("-", "--", "-.", ":")):
        for i, side in enumerate(boundaries(LevelAssigner(**rule))):
            axes.axvline(side, color=colour, linestyle=style, label=None if i else name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="sqrt(area) in pixels", ylabel="RoIs")
    axes.legend(title="boundaries of levels")
    figure.savefig(file, dpi=150)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    try:
        assigner = LevelAssigner(rule=args.rule, base=args.base, rounding=args.rounding)
    except ValueError as e:
        raise UserError(str(e)) from e
    folder = new_folder(args.output)
    run, model = load_trained(args.config_file, args.weights, args.opts)
    areas = sampled_boxes(model, run.build_train_loader(max(run.seed, 0)), args.batches, args.unique)
    rows = table(areas, assigner)
    draw(areas, folder / "level_statistics.png")
    (folder / "level_statistics.json").write_text(json.dumps({"batches": len(areas), "levels": rows}, indent=1))
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    print(f"means of {len(areas)} batches: {folder}/level_statistics.png")


if __name__ == "__main__":
    main()
