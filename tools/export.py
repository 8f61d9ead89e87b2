#!/usr/bin/env python3
"""A trained model as one file that runs without this repository: TorchScript, torch.export or ONNX.

    tools/export.py --config-file output/config.yaml --weights output/model_final.pth --image example.png \\
        --format torchscript --output detector.pt

The program takes one uint8 image (3, H, W) of the size that the example has after the config's test transforms, and
gives boxes, scores and classes (docs/exporting.md says what else). It is read back and run on the example, its mirror
images and an empty image: a file is only written where it gives what the model gives.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode, instantiate  # noqa: E402
from detectron2.data import DatasetMapper  # noqa: E402
from shared.config import load_config  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.export import FORMATS, ExportFormat, ExportProgram  # noqa: E402
from shared.export.program import PARTS, largest_difference  # noqa: E402
from shared.files import disk_errors  # noqa: E402
from shared.predictor import lazy_class_names  # noqa: E402
from shared.training.run import Run, make_run  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import trained_model  # noqa: E402
from tools.output import new_file  # noqa: E402


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml; a run's config.yaml")
    parser.add_argument("--weights", default="", help="checkpoint; default the config's")
    parser.add_argument("--image", required=True, help="an image with objects: its resized size becomes the program's")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="another size, in pixels")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--part", default="model", choices=PARTS, help="default the whole model")
    parser.add_argument("--output", required=True, help="a file that is not there yet")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def example_image(run: Run, file: str, size: list[int] | None) -> Tensor:
    """(3, H, W) uint8, as the config's test mapper makes it; resized to `size` where one is given."""
    if not os.path.isfile(file):
        raise UserError(f"--image {file} does not exist.")
    cfg = run.cfg
    mapper = DatasetMapper(cfg, False) if isinstance(cfg, CfgNode) else instantiate(cfg.dataloader.test.mapper)
    try:
        image = mapper({"file_name": file, "label": 0})["image"]
    except (OSError, SyntaxError) as e:
        raise UserError(f"Image file {file} cannot be read: {e}.") from e
    if size is not None:
        if min(size) < 1:
            raise UserError(f"--size must be at least 1 x 1 pixels, got {size[0]} x {size[1]}.")
        resized = F.interpolate(image[None].float(), size=tuple(size), mode="bilinear", antialias=True)[0]
        image = resized.round().clamp(0, 255).to(torch.uint8)
    return image.contiguous()


def record(program: ExportProgram, image: Tensor, kind: ExportFormat):
    """UserError where the format cannot express the model, or the example shows too little of it."""
    with torch.no_grad():
        example = program(image)
    if "boxes" in program.output_names and len(example[0]) == 0:
        raise UserError("The model finds nothing on --image: a program can only be recorded on an image with objects.")
    try:
        return kind.record(program, image)
    except Exception as e:  # recorders fail in every way
        reason = " ".join(str(e).split())[:300]
        others = ", ".join(name for name in FORMATS if name != kind.name)
        raise UserError(
            f"--format {kind.name} cannot record this model ({type(e).__name__}: {reason}): take {others} or "
            f"--part backbone."
        ) from e


def check(program: ExportProgram, path: str, image: Tensor, kind: ExportFormat) -> float:
    """The largest difference between the file's results and the model's; UserError where it is no rounding error."""
    runner = kind.load(path)
    images = {
        "the example": image,
        "its mirror image": image.flip(2),
        "the example upside down": image.flip(1),
        "an empty image": torch.full_like(image, 128),
    }
    worst = 0.0
    with torch.no_grad():
        for what, pixels in images.items():
            expected = program(pixels.contiguous())
            try:
                difference = largest_difference(program.output_names, expected, runner(pixels.contiguous()))
            except Exception as e:  # of another runtime
                raise UserError(
                    f"--format {kind.name}: the program stops on {what} ({' '.join(str(e).split())[:300]}); no file is "
                    f"written."
                ) from e
            if not difference <= kind.tolerance:
                raise UserError(
                    f"--format {kind.name}: the program's results on {what} differ from the model's by {difference:g}; "
                    f"no file is written."
                )
            worst = max(worst, difference)
    return worst


def notes_of(run: Run, program: ExportProgram, image: Tensor) -> dict:
    """What a program that runs the file must know."""
    cfg = run.cfg
    if isinstance(cfg, CfgNode):
        channels, classes = cfg.INPUT.FORMAT, list(cfg.DATASETS.CLASS_NAMES)
    else:
        channels, classes = cfg.dataloader.test.mapper.image_format, lazy_class_names(cfg)
    return {
        "input": {"size": list(image.shape), "dtype": "uint8", "channels": channels},
        "outputs": list(program.output_names),
        "class_names": classes,
        "torch": torch.__version__,
    }


def export(run: Run, model: torch.nn.Module, args: argparse.Namespace, output: Path) -> str:
    """Writes the file; returns what to say about it."""
    kind = FORMATS[args.format]
    image = example_image(run, args.image, args.size).to(run.device)
    program = ExportProgram(model, args.part)
    recorded = record(program, image, kind)
    ops = kind.native_ops(recorded)
    with disk_errors(str(output.parent)), tempfile.TemporaryDirectory(dir=output.parent) as folder:
        file = os.path.join(folder, output.name)
        notes = notes_of(run, program, image)
        kind.save(recorded, file, notes)
        worst = check(program, file, image, kind)
        os.replace(file, output)
    c, h, w = image.shape
    lines = [
        f"input    {c} x {h} x {w}, uint8, {notes['input']['channels']}, on {run.device}",
        "outputs  " + ", ".join(notes["outputs"]),
        f"checked  on 4 images: largest difference to the model {worst:.3g}",
    ]
    if ops:
        lines.append(
            f"needs    shared/ops/_C.so (for {', '.join(ops)}); exported with SHARED_OPS=reference it does not"
        )
    return "\n".join([*lines, f"{output} ({output.stat().st_size / 2**20:.1f} MiB)"])


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    FORMATS[args.format].check_packages()
    output = new_file(args.output)
    if output.suffix != FORMATS[args.format].suffix:
        raise UserError(f"--output {output} must end in {FORMATS[args.format].suffix}, as --format {args.format} does.")
    run = make_run(load_config(args.config_file, args.opts))
    print(export(run, trained_model(run, args.weights), args, output))


if __name__ == "__main__":
    main()
