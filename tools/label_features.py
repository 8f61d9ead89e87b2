#!/usr/bin/env python3
"""Pictures of what LabelEnc's encoder reads and makes, beside what the detector sees.

    tools/label_features.py --config-file runs/labelenc/step2/config.yaml \\
        --weights runs/labelenc/step2/model_final.pth --limit 4 --output features/

Images of the config's training set with their ground truth. For each, `<number>.labels.png`: the image with its boxes,
and the label map, a colour a class; `<number>.features.png`, a row a level: the encoder's map h(y), the backbone's f(I)
after the adaption net and before it, and where the first two differ, each normalised as in the distance (Eq. 10) and
shown as mean absolute values (the difference: mean squares) over the channels. label_features.json: distances by level.
The checkpoint is one of step 1 or step 2, as training wrote it: a stripped one has no encoder.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode  # noqa: E402
from detectron2.utils.env import seed_all_rng  # noqa: E402
from projects.LabelEnc.distance import pyramid_distance  # noqa: E402
from projects.LabelEnc.maps import label_maps  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import load_trained  # noqa: E402
from tools.output import new_folder  # noqa: E402

COLOURS = colormaps["tab20"]


class Level(NamedTuple):
    """One level of one image, without the cells of padding: (H, W) each, and Eq. (10) on the level."""

    encoder: Tensor
    adapted: Tensor
    backbone: Tensor
    difference: Tensor
    distance: float


class View(NamedTuple):
    """One image: RGB (H, W, 3) uint8; boxes (n, 4) in its pixels; classes (n,); label map (K, H, W); levels by name."""

    image: np.ndarray
    boxes: Tensor
    classes: Tensor
    labels: Tensor
    levels: dict[str, Level]


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml of step 1 or step 2; a run's config.yaml")
    parser.add_argument("--weights", default="", help="checkpoint of that run; default the config's")
    parser.add_argument("--output", required=True, help="folder for the pictures; new or empty")
    parser.add_argument("--limit", type=int, default=4, help="images, default 4")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def normalise(maps: Tensor, norm: str) -> Tensor:
    """LN of Eq. (10), (N, C, H, W): over each image ("chw") or over the channels of each position ("c")."""
    if norm == "chw":
        return nn.functional.layer_norm(maps, maps.shape[1:])
    return nn.functional.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)


@torch.no_grad()
def look(model: nn.Module, record: dict, rgb: bool) -> View:
    """One record of the training loader through encoder, backbone and adaption net. UserError without these."""
    label_enc = getattr(model, "label_enc", None)
    if label_enc is None or label_enc.encoder is None or label_enc.adapt is None:
        raise UserError(
            "The config's model has no label encoder and adaption net: give one of LabelEnc's step 1 or step 2."
        )
    images = model.preprocess_image([record])
    size, (height, width) = images.tensor.shape[-2:], images.image_sizes[0]
    truth = record["instances"].to(images.tensor.device)
    label_enc.map_options = {**label_enc.map_options, "augment": False}
    encoded, backbone = label_enc.encode([truth], size), model.backbone(images.tensor)
    adapted = label_enc.adapt(backbone)
    options, levels = label_enc.distance_options, {}
    for name, h in encoded.items():
        distance = pyramid_distance({name: adapted[name]}, {name: h}, norm=options["norm"], reduction="mean")
        h, a, f = (normalise(x, options["norm"])[0].cpu() for x in (h, adapted[name], backbone[name]))
        rows, columns = (math.ceil(n * part / whole) for n, part, whole in zip(h.shape[1:], (height, width), size))
        maps = (x.mean(dim=0)[:rows, :columns] for x in (h.abs(), a.abs(), f.abs(), (a - h).square()))
        levels[name] = Level(*maps, distance.item())
    num_classes = label_enc.encoder.bottom_up.num_classes
    (group,) = label_maps([truth], size, num_classes=num_classes, **label_enc.map_options)
    labels = torch.zeros(num_classes, height, width)
    labels[group.present.cpu()] = group.maps[0, :, :height, :width].cpu()
    image = record["image"] if rgb else record["image"].flip(0)
    return View(image.permute(1, 2, 0).numpy(), truth.gt_boxes.tensor.cpu(), truth.gt_classes.cpu(), labels, levels)


def records(run, limit: int) -> Iterator[dict]:
    """The first `limit` images that the training loader gives."""
    return itertools.islice(itertools.chain.from_iterable(run.build_train_loader(max(run.seed, 0))), limit)


def colours_of(labels: Tensor) -> np.ndarray:
    """(K, H, W) in [0, 1] -> (H, W, 3): at each point the colour of the strongest class, as bright as it is strong."""
    value, index = labels.max(dim=0)
    palette = np.array([COLOURS(k % COLOURS.N)[:3] for k in range(len(labels))])
    return palette[index.numpy()] * value.numpy()[..., None]


def draw_labels(view: View, names: list[str]) -> Figure:
    figure = Figure(figsize=(10, 10 * view.image.shape[0] / view.image.shape[1] / 2 + 0.5), layout="constrained")
    pictures = {"image": view.image, "label map": colours_of(view.labels)}
    for axis, (title, picture) in zip(figure.subplots(1, 2), pictures.items()):
        axis.imshow(picture)
        axis.set(title=title, xticks=[], yticks=[])
        for (x0, y0, x1, y1), k in zip(view.boxes.tolist(), view.classes.tolist()):
            colour = COLOURS(k % COLOURS.N)
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, linewidth=1))
            if title == "image":
                axis.text(x0, y0, names[k] if k < len(names) else str(k), color="white", backgroundcolor=colour, size=6)
    return figure


def draw_features(view: View) -> Figure:
    columns = {"encoder": "h(y)", "adapted": "A(f(I))", "backbone": "f(I)", "difference": "squared difference"}
    figure = Figure(figsize=(3 * len(columns), 2.6 * len(view.levels)), layout="constrained")
    for axes, (name, level) in zip(figure.subplots(len(view.levels), len(columns), squeeze=False), view.levels.items()):
        top = max(level.encoder.max().item(), level.adapted.max().item())
        for axis, (field, title) in zip(axes, columns.items()):
            # the two that the distance compares share a range of colours
            axis.imshow(getattr(level, field), vmin=0, vmax=top if field in ("encoder", "adapted") else None)
            distance = f": {level.distance:.3f}" if field == "difference" else ""
            axis.set_title(f"{name} {title}{distance}", fontsize=9)
            axis.axis("off")
    return figure


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    if args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}.")
    run, model = load_trained(args.config_file, args.weights, args.opts, inference=False)
    names = run.check_classes()
    folder = new_folder(args.output)
    yaml = isinstance(run.cfg, CfgNode)
    rgb = (run.cfg.INPUT.FORMAT if yaml else run.cfg.dataloader.train.mapper.image_format) == "RGB"
    seed_all_rng(max(run.seed, 0))
    model.eval()
    rows = []
    for number, record in enumerate(records(run, args.limit)):
        view = look(model, record, rgb)
        draw_labels(view, names).savefig(folder / f"{number:03d}.labels.png", dpi=100)
        draw_features(view).savefig(folder / f"{number:03d}.features.png", dpi=100)
        distances = {name: level.distance for name, level in view.levels.items()}
        rows.append({"file": record["file_name"], "objects": len(view.boxes), "distance": distances})
        print(f"{record['file_name']}: " + ", ".join(f"{name} {value:.3f}" for name, value in distances.items()))
    (folder / "label_features.json").write_text(json.dumps(rows, indent=1))
    print(f"{len(rows)} image(s); distance of each level, 0 equal, 2 unrelated: {folder}")


if __name__ == "__main__":
    main()
