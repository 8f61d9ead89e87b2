#!/usr/bin/env python3
"""Pictures of what a detector with LIP weighs, and of what max, average and LIP pooling keep of a small object.

    tools/importance_maps.py --config-file projects/LIP/configs/faster_rcnn_lip_quick.py \\
        --weights output/lip_quick/model_final.pth --input image.png --output maps/

For each image: `<name>.importance.png`, the image under each site's importance map (mean over channels of exp(logit),
relative to the channel's own mean); `<name>.object.png`, the mean absolute activation around one object before and
after each pooling of the same map, with its contrast: mean inside the box over mean outside. The object is the
smallest detection, or --box.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.engine import DefaultPredictor  # noqa: E402
from projects.LIP.importance import Site, contrast, energy, recorded_sites  # noqa: E402
from shared.data.named_errors import read_picture  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.output import new_folder  # noqa: E402
from tools.predict import image_files, make_cfg, make_predictor  # noqa: E402

COLUMNS = 4
Box = tuple[float, float, float, float]


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml of a detector with LIP")
    parser.add_argument("--weights", default="", help="checkpoint; default the config's")
    parser.add_argument("--input", required=True, nargs="+", help="images and folders of images")
    parser.add_argument("--output", required=True, help="folder for the pictures; new or empty")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="of the detections, default 0.5")
    parser.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"), help="the object, in pixels")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def look(predictor: DefaultPredictor, image: np.ndarray) -> tuple[dict[str, Site], list]:
    """(sites without the cells of padding, instances) of one BGR image. UserError for a model without LIP."""
    padded = {}
    backbone = predictor.model.backbone
    handle = backbone.register_forward_pre_hook(lambda _, args: padded.update(size=args[0].shape[-2:]))
    with recorded_sites(predictor.model) as sites:
        instances = predictor(image)["instances"].to("cpu")
    handle.remove()
    if not sites:
        raise UserError("The config's model pools nowhere with LIP: give one with a LIP backbone and sites.")
    valid = predictor.aug.get_transform(image).apply_image(image).shape[:2]
    shares = [a / b for a, b in zip(valid, padded["size"])]
    return {name.rpartition("bottom_up.")[2]: _without_padding(s, shares) for name, s in sites.items()}, instances


def _without_padding(site: Site, shares: list[float]) -> Site:
    def cut(x: Tensor) -> Tensor:
        return x[:, : math.ceil(x.shape[1] * shares[0]), : math.ceil(x.shape[2] * shares[1])].cpu()

    return Site(cut(site.x), cut(site.logits), {name: cut(x) for name, x in site.poolings.items()})


def choose_box(given: list[float] | None, instances, threshold: float, size: tuple[int, int]) -> Box | None:
    """The box as shares of the image's sides: `given` in pixels, else that of the smallest detection; None without."""
    if given is None:
        boxes = instances.pred_boxes[instances.scores >= threshold]
        if len(boxes) == 0:
            return None
        given = boxes.tensor[boxes.area().argmin()].tolist()
    h, w = size
    x0, y0, x1, y1 = (min(max(v / side, 0.0), 1.0) for v, side in zip(given, (w, h, w, h)))
    if not (x1 > x0 and y1 > y0) or (x1 - x0) * (y1 - y0) == 1:
        raise UserError(f"--box {given} must lie in the image of {w} x {h} pixels, with X0 < X1 and Y0 < Y1.")
    return x0, y0, x1, y1


def draw_importance(image: np.ndarray, sites: dict[str, Site]) -> Figure:
    """The RGB image, and each site's importance map over it."""
    rows = math.ceil((len(sites) + 1) / COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    axes[0].imshow(image)
    axes[0].set_title("image")
    for axis, (name, site) in zip(axes[1:], sites.items()):
        weights = F.interpolate(site.importance()[None, None], image.shape[:2], mode="bilinear")[0, 0]
        axis.imshow(image.mean(axis=2), cmap="gray")
        axis.imshow(weights.numpy(), cmap="inferno", alpha=0.6)
        axis.set_title(f"{name}\n{weights.min():.2f} to {weights.max():.2f}")
    return figure


def draw_object(image: np.ndarray, sites: dict[str, Site], box: Box) -> Figure:
    """A row a site: the object's surroundings in the image, the map, and the three poolings of it."""
    window = _surroundings(box)
    columns = 2 + len(next(iter(sites.values())).poolings)
    figure = Figure(figsize=(2.6 * columns, 2.8 * len(sites)), layout="constrained")
    for axes, (name, site) in zip(figure.subplots(len(sites), columns, squeeze=False), sites.items()):
        _show(axes[0], image, window, box, name)
        for axis, (title, x) in zip(axes[1:], {"before": site.x, **site.poolings}.items()):
            values = energy(x)
            _show(axis, values.numpy(), window, box, f"{title}: {contrast(values, box):.2f}")
    return figure


def _surroundings(box: Box) -> Box:
    """Three times the box, within the image."""
    w, h = box[2] - box[0], box[3] - box[1]
    return max(box[0] - w, 0.0), max(box[1] - h, 0.0), min(box[2] + w, 1.0), min(box[3] + h, 1.0)


def _show(axis, picture: np.ndarray, window: Box, box: Box, title: str) -> None:
    axis.imshow(picture, extent=(0, 1, 1, 0), aspect="auto", cmap="viridis")
    axis.plot([box[i] for i in (0, 2, 2, 0, 0)], [box[i] for i in (1, 1, 3, 3, 1)], color="red", linewidth=1)
    axis.set_xlim(window[0], window[2])
    axis.set_ylim(window[3], window[1])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=9)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    files = image_files(args.input)[: args.limit]
    predictor = make_predictor(make_cfg(args.config_file, args.weights, args.opts))
    folder = new_folder(args.output)
    for number, file in enumerate(files):
        image = read_picture(file)
        sites, instances = look(predictor, image)
        box = choose_box(args.box, instances, args.score_threshold, image.shape[:2])
        name = f"{number:03d}-{Path(file).stem}"
        draw_importance(image[:, :, ::-1], sites).savefig(folder / f"{name}.importance.png", dpi=100)
        print(f"{file}: {len(sites)} sites -> {folder / name}.importance.png")
        if box is None:
            print("  no detection above the threshold: give --box, or lower --score-threshold")
            continue
        draw_object(image[:, :, ::-1], sites, box).savefig(folder / f"{name}.object.png", dpi=100)
        for site, values in sites.items():
            kept = {"before": values.x, **values.poolings}
            print(f"  {site:22}" + "  ".join(f"{k} {contrast(energy(x), box):.3f}" for k, x in kept.items()))


if __name__ == "__main__":
    main()
