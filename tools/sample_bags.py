#!/usr/bin/env python3
"""Pictures of whom a detector with MuSu's assignment trains on: the bag of each object with both heads' weights.

    tools/sample_bags.py --config-file output/musu_quick/config.yaml --output bags/ \\
        --weights output/musu_quick/model_0000199.pth output/musu_quick/model_final.pth

A row a checkpoint, so that several of one run show the bags over training time; on the left the weights of the class
head, on the right those of the box head. A dot is a sample, its area the weight, its colour the object's; a cross is
the object's top-scored location. Images of the config's test set, at the network's input size, batch norm as at
inference. Writes `<image>.bags.png` and bags.json, where boxes and locations are in pixels of the input.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from tabulate import tabulate  # noqa: E402

import projects  # noqa: E402, F401  first of ours: it chooses the engine and registers every part
from detectron2.config import CfgNode, instantiate  # noqa: E402
from detectron2.data import DatasetMapper, get_detection_dataset_dicts  # noqa: E402
from projects.MuSu.assign import score  # noqa: E402
from projects.MuSu.detector import MuSu  # noqa: E402
from projects.MuSu.diagnostics import describe, top_scored  # noqa: E402
from shared.data.named_errors import NamedErrors  # noqa: E402
from shared.errors import UserError, nearest  # noqa: E402
from shared.training.run import Run  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import load_trained  # noqa: E402
from tools.output import new_folder  # noqa: E402

DOT = 120  # points^2 of weight 1
HEADS = {"w_cls": "class head", "w_reg": "box head"}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml; a run's config.yaml")
    parser.add_argument("--weights", required=True, nargs="+", help="checkpoints, a row each")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--images", nargs="+", default=[], help="names of images of the test set; default its first")
    parser.add_argument("--opts", nargs="*", default=[], help="key=value overrides of the config")
    return parser


def annotated(run: Run, names: list[str]) -> list[dict]:
    """The test images of these file names (with or without suffix; [] for the first), resized as for the test, with
    `instances` at that size."""
    cfg = run.cfg
    if isinstance(cfg, CfgNode):
        records = get_detection_dataset_dicts(list(cfg.DATASETS.TEST), filter_empty=False)
        mapper = DatasetMapper(cfg, is_train=False)
    else:
        records, mapper = instantiate(cfg.dataloader.test.dataset), instantiate(cfg.dataloader.test.mapper)
    mapper.is_train = True  # the same image, and its annotations
    by_name = {name: x for x in reversed(records) for name in (Path(x["file_name"]).name, Path(x["file_name"]).stem)}
    for name in names:
        if name not in by_name:
            raise UserError(f"The test set has no image {name!r}{nearest(name, by_name) or '.'}")
    chosen = [by_name[name] for name in names] or records[:1]
    return [NamedErrors(mapper)(record) for record in chosen]


def bags_of(model: MuSu, image: dict) -> dict:
    """Of one image: "mean", as in diagnostics.py, and per object its box, class, top-scored location and samples."""
    scene, assignment = model.assign([image])
    points, shapes = scene.grid.points(), scene.grid.shapes_per_location
    said, top = score(scene, assignment.anchors, assignment.gts), top_scored(scene)
    place = {int(g): points[i // shapes].tolist() for i, g in zip(top.anchors, top.gts)}
    ious = dict(zip(top.gts.tolist(), top.u.tolist()))
    objects = [
        {"box": box, "class": label, "top_scored": place.get(j), "top_scored_iou": ious.get(j), "samples": []}
        for j, (box, label) in enumerate(zip(scene.gt_boxes.tolist(), scene.gt_classes.tolist()))
    ]
    columns = assignment.w_cls, assignment.w_reg, said.log_s.exp(), said.u
    for i, j, *values in zip(assignment.anchors.tolist(), assignment.gts.tolist(), *(x.tolist() for x in columns)):
        sample = {"point": points[i // shapes].tolist(), "shape": i % shapes}
        objects[j]["samples"].append(sample | dict(zip(("w_cls", "w_reg", "score", "iou"), values)))
    return {"mean": describe(scene, assignment), "objects": objects}


def draw(image: torch.Tensor, rows: dict[str, dict], bgr: bool, file: Path) -> None:
    """image: (3, H, W) in 0-255; rows: title to `bags_of`."""
    picture = (image.flip(0) if bgr else image).permute(1, 2, 0).numpy().astype("uint8")
    height, width = picture.shape[:2]
    figure = Figure(figsize=(12, 0.4 + (6 * height / width + 0.4) * len(rows)), layout="constrained")
    for axes, (title, bags) in zip(figure.subplots(len(rows), 2, squeeze=False), rows.items()):
        for axis, (head, name) in zip(axes, HEADS.items()):
            axis.imshow(picture, alpha=0.6)
            axis.set(title=f"{title}: {name}", xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            for j, bag in enumerate(bags["objects"]):
                (x0, y0, x1, y1), colour = bag["box"], f"C{j % 10}"
                axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
                for sample in bag["samples"]:
                    axis.scatter(*sample["point"], s=DOT * sample[head], color=colour, alpha=0.7, linewidths=0)
                if bag["top_scored"]:
                    axis.scatter(*bag["top_scored"], marker="x", s=30, color="black", linewidths=1)
    figure.savefig(file, dpi=100)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    folder = new_folder(args.output)
    bags: dict[str, dict[str, dict]] = {}
    for weights in args.weights:
        run, model = load_trained(args.config_file, weights, args.opts)
        if not isinstance(model, MuSu):
            raise UserError(
                f"{type(model).__name__} has no such bags: give a config of projects/MuSu with its detector."
            )
        model.eval()
        images = annotated(run, args.images)
        for image in images:
            bags.setdefault(Path(image["file_name"]).stem, {})[weights] = bags_of(model, image)
    cfg = run.cfg
    form = cfg.INPUT.FORMAT if isinstance(cfg, CfgNode) else cfg.dataloader.test.mapper.image_format
    for image, (stem, rows) in zip(images, bags.items()):
        titles = {Path(weights).stem: row for weights, row in rows.items()}
        draw(image["image"], titles if len(titles) == len(rows) else rows, form == "BGR", folder / f"{stem}.bags.png")
        print(tabulate([{stem: weights, **row["mean"]} for weights, row in rows.items()], "keys", floatfmt=".3f"))
    (folder / "bags.json").write_text(json.dumps(bags, indent=1))
    print(f"{len(bags)} image(s), {len(args.weights)} checkpoint(s): {folder}/")


if __name__ == "__main__":
    main()
