#!/usr/bin/env python3
"""t-SNE picture of what the classifier of a two-stage detector sees: one panel per checkpoint.

    tools/roi_tsne.py --config-file base/config.yaml ours/config.yaml \\
        --weights base/model_final.pth ours/model_final.pth --output tsne/

Points are the final detections on the config's first test set (another one: override dataloader.test.dataset.names, or
DATASETS.TEST), each with the features that its class was told from, i.e. the input of the box predictor. Colours are
the classes with most detections by the first checkpoint; small objects are translucent. Distances in the picture mean
little, so numbers of the features themselves are printed; distances are in units of the mean distance to the centre of
all points. (Fig. 1 of "Feature Intertwiner for Object Detection", ICLR 2019.) Writes roi_tsne.png and roi_tsne.json.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.manifold import TSNE  # noqa: E402
from sklearn.metrics import silhouette_score  # noqa: E402
from tabulate import tabulate  # noqa: E402
from torch import nn  # noqa: E402

import projects  # noqa: E402, F401  first of ours: it chooses the engine and registers every part
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import load_trained  # noqa: E402
from tools.output import new_folder  # noqa: E402

NUM_CLASSES, PCA_DIMENSIONS, PERPLEXITY = 10, 50, 30
SMALL_BELOW = 79.2  # px: Eq. (6) puts a box of sqrt(area) up to 224 / 2^1.5 on the finest level


class Detections(NamedTuple):
    """M final detections of a set."""

    features: np.ndarray  # (M, D)
    classes: np.ndarray  # (M,) in [0, K)
    sides: np.ndarray  # (M,) sqrt(area) in pixels of the network's input

    def take(self, rows: np.ndarray) -> "Detections":
        return Detections(*(field[rows] for field in self))


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, nargs="+", help="one for all checkpoints, or one each")
    parser.add_argument("--weights", required=True, nargs="+", help="one or two checkpoints")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    parser.add_argument("--points", type=int, default=3000, help="at most so many detections a panel, default 3000")
    parser.add_argument("--small-below", type=float, default=SMALL_BELOW, help="sqrt(area) in pixels, default 79.2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opts", nargs="*", default=[], help="key=value overrides of the configs")
    return parser


@torch.no_grad()
def collect(model: nn.Module, loader: Iterable, limit: int | None = None) -> Detections:
    """Run the detector; keep the predictor's input rows that the final detections come from."""
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    if not hasattr(predictor, "inference"):
        raise UserError(f"{type(model).__name__} has no RoI heads with one box predictor: no features to show.")
    inputs, found = [], []

    def recorded(predictions, proposals):
        instances, rows = inference(predictions, proposals)
        for part, kept, x in zip(instances, rows, inputs.pop().flatten(1).split([len(p) for p in proposals])):
            found.append((x[kept].float().cpu(), part.pred_classes.cpu(), part.pred_boxes.area().sqrt().cpu()))
        return instances, rows

    inference = predictor.inference
    predictor.inference = recorded
    hook = predictor.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.eval()
    try:
        seen = 0
        for batch in loader:
            batch = batch if limit is None else batch[: limit - seen]
            if not batch:
                break
            model(batch)
            seen += len(batch)
    finally:
        hook.remove()
        del predictor.inference  # the class's own again
    if not found:
        raise UserError("The test set has no images: nothing to show.")
    return Detections(*(torch.cat(field).numpy() for field in zip(*found)))


def choose(parts: list[Detections], points: int, seed: int) -> tuple[list[Detections], list[int]]:
    """The same classes and as many detections of every part, drawn at random; and the classes."""
    values, counts = np.unique(parts[0].classes, return_counts=True)
    classes = values[np.argsort(-counts, kind="stable")][:NUM_CLASSES].tolist()
    parts = [part.take(np.flatnonzero(np.isin(part.classes, classes))) for part in parts]
    num = min(points, *(len(part.classes) for part in parts))
    if num < 5:
        raise UserError(f"Only {num} detection(s) of the classes shown: use more images, or another checkpoint.")
    rng = np.random.default_rng(seed)
    return [part.take(np.sort(rng.permutation(len(part.classes))[:num])) for part in parts], classes


def embed(features: np.ndarray, seed: int) -> np.ndarray:
    """(M, D) -> (M, 2): PCA, then t-SNE."""
    reduced = PCA(min(PCA_DIMENSIONS, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def measure(part: Detections, small_below: float) -> dict[str, float]:
    """Of the features, not of the picture. nan where a number does not exist.

    within: mean distance to the centre of the own class; small_large: mean over classes of the distance between the
    centres of small and large objects; both divided by the mean distance to the centre of all. silhouette: in [-1, 1].
    """
    features, classes, small = part.features, part.classes, part.sides < small_below
    unit = np.linalg.norm(features - features.mean(0), axis=1).mean()
    within, gaps = 0.0, []
    for k in np.unique(classes):
        own, is_small = features[classes == k], small[classes == k]
        within += np.linalg.norm(own - own.mean(0), axis=1).sum() / len(features)
        if is_small.any() and not is_small.all():
            gaps.append(np.linalg.norm(own[is_small].mean(0) - own[~is_small].mean(0)))
    several = 1 < len(np.unique(classes)) < len(classes)
    return {
        "within": float(within / unit),
        "small_large": float(np.mean(gaps) / unit) if gaps else float("nan"),
        "silhouette": float(silhouette_score(features, classes)) if several else float("nan"),
    }


def draw(parts: list[Detections], points: list[np.ndarray], titles, classes, names, small_below, file: Path) -> None:
    figure = Figure(figsize=(6 * len(parts) + 1.5, 6), layout="constrained")
    for axes, part, xy, title in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, points, titles):
        for i, k in enumerate(classes):
            for small in (False, True):
                rows = (part.classes == k) & ((part.sides < small_below) == small)
                label = None if small else names[k]
                axes.scatter(*xy[rows].T, s=12, color=f"C{i}", alpha=0.3 if small else 1, linewidths=0, label=label)
        axes.set(title=title, xticks=[], yticks=[])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=f"translucent: below {small_below:g} px")
    figure.savefig(file, dpi=150)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    configs, weights = args.config_file, args.weights
    if len(weights) > 2 or len(configs) not in (1, len(weights)):
        raise UserError(f"{len(configs)} config(s), {len(weights)} checkpoint(s): give one or two, with a config each.")
    folder = new_folder(args.output)
    parts = []
    for config, file in zip(configs * len(weights) if len(configs) == 1 else configs, weights):
        run, model = load_trained(config, file, args.opts)
        names = run.check_classes()
        parts.append(collect(model, next(run.build_test_sets(None))[1], args.limit))
        print(f"{file}: {len(parts[-1].classes)} detections")
    parts, classes = choose(parts, args.points, args.seed)
    names = {k: names[k] if k < len(names) else str(k) for k in classes}
    points = [embed(part.features, args.seed) for part in parts]
    draw(parts, points, weights, classes, names, args.small_below, folder / "roi_tsne.png")
    numbers = [{"weights": file, **measure(part, args.small_below)} for file, part in zip(weights, parts)]
    content = {"classes": list(names.values()), "points": len(parts[0].classes), "panels": numbers}
    (folder / "roi_tsne.json").write_text(json.dumps(content, indent=1))
    print(tabulate(numbers, headers="keys", floatfmt=".3f"))
    print(f"{len(parts[0].classes)} points a panel: {folder}/roi_tsne.png")


if __name__ == "__main__":
    main()
