#!/usr/bin/env python3
"""Pictures of where a model with DEPLA reads and where it writes, like Figure 8 of its paper.

    tools/region_maps.py --config-file projects/DEPLA/configs/faster_rcnn_depla_quick.py \\
        --weights output/depla_quick/model_final.pth --input image.png --output maps/

For each image and DEPLA module: `<name>.<module>.groups.png`, a row for each of the groups that write most: the
back-filling heat map, the mean of its RoI maps and the maps themselves over the image, each relative to its own largest
value, with the effective area, (sum m)^2 / (P sum m^2); `<name>.<module>.features.png`, mean absolute activations of X,
Y, the update and the output, and the strongest group's RoI maps at other temperatures; `<name>.<module>.npz`, all maps
as numbers. Detectors and classifiers alike; of a classifier's image, what its test transforms leave.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from torch import Tensor  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode, instantiate  # noqa: E402
from projects.DEPLA.regions import Regions, effective_area, recorded_regions, sharpened  # noqa: E402
from shared.checkpoint import WeightsCheckpointer  # noqa: E402
from shared.config import load_config  # noqa: E402
from shared.data.named_errors import read_picture  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import check_device, exit_on_user_error  # noqa: E402
from tools.output import new_folder  # noqa: E402
from tools.predict import image_files, make_cfg, make_predictor  # noqa: E402

TEMPERATURES = (1.0, 0.5, 0.2, 0.05)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml of a model with DEPLA")
    parser.add_argument("--weights", default="", help="checkpoint; default the config's")
    parser.add_argument("--input", required=True, nargs="+", help="images and folders of images")
    parser.add_argument("--output", required=True, help="folder for the pictures; new or empty")
    parser.add_argument("--modules", default="", help="only modules whose name contains this: fpn_depla2, res4.3, ...")
    parser.add_argument("--groups", type=int, default=4, help="how many groups, those that write most; default 4")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


Looker = Callable[[str], tuple[np.ndarray, dict[str, Regions]]]


def detector_looker(cfg: CfgNode) -> Looker:
    """file -> (RGB image, regions by module without the cells of padding)."""
    predictor = make_predictor(cfg)
    backbone = predictor.model.backbone

    def look(file: str) -> tuple[np.ndarray, dict[str, Regions]]:
        image = read_picture(file)
        padded = {}
        handle = backbone.register_forward_pre_hook(lambda _, args: padded.update(size=args[0].shape[-2:]))
        with recorded_regions(predictor.model) as found:
            predictor(image)
        handle.remove()
        valid = predictor.aug.get_transform(image).apply_image(image).shape[:2]
        shares = [a / b for a, b in zip(valid, padded["size"])]
        return image[:, :, ::-1], {name: _without_padding(r, shares) for name, r in found.items()}

    return look


def classifier_looker(cfg: DictConfig, weights: str) -> Looker:
    """file -> (RGB image as the test transforms crop it, regions by module)."""
    weights = weights or cfg.train.init_checkpoint
    if not weights:
        raise UserError("No weights: add --weights FILE.")
    check_device(cfg.train.device, 1, "train.device")
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=True, inference=True)
    mapper = instantiate(cfg.dataloader.test.mapper)

    def look(file: str) -> tuple[np.ndarray, dict[str, Regions]]:
        try:
            record = mapper({"file_name": file, "label": 0})
        except (OSError, SyntaxError) as e:
            raise UserError(f"Image file {file} cannot be read: {e}.") from e
        with torch.no_grad(), recorded_regions(model) as found:
            model([record])
        picture = record["image"] if mapper.image_format == "RGB" else record["image"].flip(0)
        return picture.permute(1, 2, 0).numpy(), dict(found)

    return look


def make_looker(config_file: str, weights: str, opts: list[str]) -> Looker:
    """For the detector or classifier of a config."""
    cfg = load_config(config_file, opts)
    if isinstance(cfg, DictConfig) and "transforms" in cfg.dataloader.test.mapper:
        return classifier_looker(cfg, weights)
    return detector_looker(make_cfg(config_file, weights, opts))


def choose(found: dict[str, Regions], modules: str) -> dict[str, Regions]:
    """Those whose name contains `modules`, without "backbone.". UserError: there is none."""
    if not found:
        raise UserError("The config's model has no DEPLA: give one with DEPLA in its backbone or FPN.")
    chosen = {name.removeprefix("backbone."): regions for name, regions in found.items() if modules in name}
    if not chosen:
        raise UserError(f"--modules {modules!r} is in no name of the model's DEPLA modules: {', '.join(found)}.")
    return chosen


def _without_padding(regions: Regions, shares: list[float]) -> Regions:
    def cut(x: Tensor) -> Tensor:
        if x.dim() == 1:
            return x
        return x[..., : math.ceil(x.shape[-2] * shares[0]), : math.ceil(x.shape[-1] * shares[1])]

    return Regions(*(cut(getattr(regions, f.name)) for f in fields(Regions)))


def _axes(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.8 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _overlay(axis, image: np.ndarray, values: Tensor, title: str) -> None:
    """values: (H, W), not negative, over the grey image."""
    values = F.interpolate(values[None, None], image.shape[:2], mode="bilinear")[0, 0]
    axis.imshow(image.mean(axis=2), cmap="gray")
    axis.imshow((values / values.max().clamp(min=1e-12)).numpy(), cmap="inferno", alpha=0.5, vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)


def draw_groups(image: np.ndarray, regions: Regions, groups: list[int]) -> Figure:
    """A row a group: the RGB image, where it writes, where it reads on average, and its single RoI maps."""
    number = regions.maps.shape[1]
    figure, axes = _axes(len(groups), 3 + number)
    for row, group in zip(axes, groups):
        row[0].imshow(image)
        row[0].set_title(f"group {group}: |tau(Z)| {regions.strength[group]:.3g}", fontsize=9)
        heat, maps = regions.heat[group], regions.maps[group]
        shown = {"writes": heat, "reads": maps.mean(dim=0), **{f"RoI map {i}": m for i, m in enumerate(maps)}}
        for axis, (title, values) in zip(row[1:], shown.items()):
            _overlay(axis, image, values, f"{title}: area {effective_area(values):.3f}")
    return figure


def draw_features(image: np.ndarray, regions: Regions, group: int) -> Figure:
    """Mean absolute activations, X and the output in one range of colours; one group's reading at TEMPERATURES."""
    figure, axes = _axes(2, 5)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=9)
    shown = {"X": regions.x, "Y": regions.y, "added": regions.update, "out": regions.out}
    energies = {title: x.abs().mean(dim=0) for title, x in shown.items()}
    top = max(energies["X"].max(), energies["out"].max()).item()
    for axis, (title, values) in zip(axes[0, 1:], energies.items()):
        picture = axis.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=top if title in ("X", "out") else None)
        figure.colorbar(picture, ax=axis, shrink=0.7)
        axis.set_title(title, fontsize=9)
    axes[1, 0].imshow(image)
    axes[1, 0].set_title(f"group {group} reads", fontsize=9)
    for axis, temperature in zip(axes[1, 1:], TEMPERATURES):
        maps = sharpened(regions.scores[group], temperature)
        _overlay(axis, image, maps.mean(dim=0), f"T = {temperature}: area {effective_area(maps).mean():.3f}")
    return figure


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    if args.groups < 1:
        raise UserError(f"--groups must be at least 1, got {args.groups}.")
    files = image_files(args.input)[: args.limit]
    look = make_looker(args.config_file, args.weights, args.opts)
    folder = new_folder(args.output)
    for number, file in enumerate(files):
        image, found = look(file)
        print(f"{file}:")
        for module, regions in choose(found, args.modules).items():
            name = f"{number:03d}-{Path(file).stem}.{module}"
            groups = regions.groups(args.groups)
            draw_groups(image, regions, groups).savefig(folder / f"{name}.groups.png", dpi=100)
            draw_features(image, regions, groups[0]).savefig(folder / f"{name}.features.png", dpi=100)
            maps = {key: getattr(regions, key).numpy() for key in ("scores", "maps", "heat", "strength")}
            np.savez_compressed(folder / f"{name}.npz", **maps)
            area = f"reads {effective_area(regions.maps).mean():.3f}, writes {effective_area(regions.heat).mean():.3f}"
            print(f"  {module}: {area} of the area; strongest groups {groups} -> {folder / name}.*")


if __name__ == "__main__":
    main()
