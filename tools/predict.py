#!/usr/bin/env python3
"""Detect on images with Detectron2's DefaultPredictor: pictures with boxes and masks, and JSON.

    tools/predict.py --config-file output/config.yaml --weights output/model_final.pth \\
        --input images/ --output predictions/

Writes one picture per image (`NAME.detections.png`, which is never taken from a folder as input) and
`predictions.json`, a list in COCO's result format with `file_name` in place of `image_id`, boxes as
[x, y, width, height] in pixels, masks as RLE.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.engine import DefaultPredictor  # noqa: E402
from detectron2.evaluation.coco_evaluation import instances_to_coco_json  # noqa: E402
from detectron2.utils.visualizer import Visualizer  # noqa: E402
from shared.checkpoint import WeightsCheckpointer, check_weights_file  # noqa: E402
from shared.config import load_config  # noqa: E402
from shared.config_checks import named_errors_of  # noqa: E402
from shared.data.coco_sets import FLAG  # noqa: E402
from shared.data.named_errors import read_picture, thin_pictures_named  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.files import disk_errors, whole_file  # noqa: E402
from shared.predictor import predictor_cfg, register_class_names  # noqa: E402
from shared.training.setup import check_device, exit_on_user_error, sentence_of  # noqa: E402
from tools.output import folder_for  # noqa: E402

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
PICTURE, RESULTS = ".detections.png", "predictions.json"


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml; a run's config.yaml")
    parser.add_argument("--weights", default="", help="checkpoint; default the config's")
    parser.add_argument("--input", required=True, nargs="+", help="images and folders of images")
    parser.add_argument("--output", required=True, help="folder for the pictures and the JSON file")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier predictions of the same names")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="default 0.5")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    parser.add_argument(FLAG, action="store_true", help="name and count images that cannot be read, and go on")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """UserError for values that make no sense."""
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}.")
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold must be between 0 and 1, got {args.score_threshold}.")


def image_files(inputs: list[str]) -> list[str]:
    """The images named and those in the folders named, sorted within a folder."""
    files: list[str] = []
    for path in inputs:
        if os.path.isdir(path):
            found = sorted(str(p) for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            found = [file for file in found if not file.endswith(PICTURE)]
            if not found:
                raise UserError(f"Input folder {path!r} holds no image.")
            files += found
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise UserError(f"Input {path!r} does not exist.")
    return files


def make_cfg(config_file: str, weights: str, opts: list[str]) -> CfgNode:
    """A CfgNode for DefaultPredictor from a config of either kind."""
    cfg = load_config(config_file, opts)
    if not isinstance(cfg, CfgNode):
        cfg = predictor_cfg(cfg, weights)
    else:
        cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
        if cfg.DATASETS.CLASS_NAMES:
            cfg.DATASETS.TEST = (register_class_names(cfg.DATASETS.CLASS_NAMES),)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("No weights: add --weights FILE.")
    check_weights_file(cfg.MODEL.WEIGHTS)
    check_device(cfg.MODEL.DEVICE, 1, "train.device" if cfg.MODEL.LAZY.YAML else "MODEL.DEVICE")
    return cfg


def make_predictor(cfg: CfgNode) -> DefaultPredictor:
    """With all of its model's weights: UserError where the file is another model's."""
    weights, cfg = cfg.MODEL.WEIGHTS, cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    with named_errors_of("model" if cfg.MODEL.LAZY.YAML else "MODEL"):
        predictor = DefaultPredictor(cfg)
    checkpointer = WeightsCheckpointer(predictor.model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=True, inference=True)
    return predictor


def predict(cfg: CfgNode, files: list[str], threshold: float, skipped: list[str] | None = None) -> Iterator[tuple]:
    """(file, BGR image, instances of at least this score, on the CPU) for each file.

    UserError for a file that cannot be read; with `skipped`, its sentence is appended there instead.
    """
    predictor = make_predictor(cfg)
    for file in files:
        try:
            image = read_picture(file)
            with thin_pictures_named(file):
                instances = predictor(image)["instances"].to("cpu")
        except UserError as e:
            if skipped is None:
                raise
            skipped.append(sentence_of(e))
            continue
        yield file, image, instances[instances.scores >= threshold]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    check_arguments(args)
    files = image_files(args.input)[: args.limit]
    cfg = make_cfg(args.config_file, args.weights, args.opts)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
    pictures = picture_names(files)
    folder = folder_for(args.output, [RESULTS, *pictures.values()], args.overwrite)
    rows = []
    skipped = [] if args.skip_bad_records else None
    for file, image, instances in predict(cfg, files, args.score_threshold, skipped):
        picture = folder / pictures[file]
        drawn = Visualizer(image[:, :, ::-1], metadata, scale=picture_scale(image))
        drawn = Image.fromarray(drawn.draw_instance_predictions(instances).get_image())
        with disk_errors(args.output), whole_file(str(picture)) as f:
            drawn.save(f, "PNG")
        for row in instances_to_coco_json(instances, file):
            row["file_name"] = row.pop("image_id")
            if metadata is not None and (names := metadata.get("thing_classes")):
                row["category"] = names[row["category_id"]]
            rows.append(row)
        print(f"{file}: {len(instances)} object(s) -> {picture}")
    for sentence in skipped or ():
        print(f"left out: {sentence}")
    if skipped and len(skipped) == len(files):
        raise UserError(f"None of the {len(files)} image(s) can be read.")
    with disk_errors(args.output), whole_file(str(folder / RESULTS), "w") as f:
        json.dump(rows, f, indent=1)
    left_out = f", {len(skipped)} left out" if skipped else ""
    print(f"{len(rows)} objects in {len(files)} image(s){left_out}: {folder / RESULTS}")


def picture_names(files: list[str]) -> dict[str, str]:
    """By file: its stem, numbered where an image before it has the same."""
    names: dict[str, str] = {}
    for file in dict.fromkeys(files):
        stem, number = Path(file).stem, 1
        name, taken = stem + PICTURE, set(names.values())
        while name in taken:
            number += 1
            name = f"{stem}-{number}{PICTURE}"
        names[file] = name
    return names


def picture_scale(image) -> float:
    """Enlarge small images so that labels stay readable."""
    return max(1.0, 640 / max(image.shape[:2]))


if __name__ == "__main__":
    main()
