#!/usr/bin/env python3
"""How far a detector's answer for an image depends on the images beside it in the batch.

    benchmarks/batch_mates.py plain=runs/a/config.yaml,train.init_checkpoint=runs/a/model_final.pth masked=... \\
        [--images 40] [--output table.md] [--title TEXT]

For each config (NAME=CONFIG[,key=value...]) and each of the first validation images: its detections with the image
alone (padded to the backbone's divisor only) and beside a second image of one and a half times its sides. A detection
of the one is found again if the other has a box of the same class with IoU above 0.5. Detectron2 pads the batch;
convolutions, norms over the whole map and softmaxes over all positions read that padding.
"""

import argparse
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import projects  # noqa: E402, F401  chooses the engine
from detectron2.structures import Instances, pairwise_iou  # noqa: E402
from shared import engine  # noqa: E402
from tools.loading import load_trained  # noqa: E402


def with_mate(inputs: dict) -> list[dict]:
    """The image and a second one, its own mirror image at one and a half times its sides."""
    large = F.interpolate(inputs["image"][None].float(), scale_factor=1.5, mode="bilinear")[0]
    mate = large.flip(-1).to(inputs["image"].dtype)
    return [inputs, {"image": mate, "height": mate.shape[1], "width": mate.shape[2]}]


def compare(alone: Instances, beside: Instances) -> tuple[list[float], list[float], int]:
    """Changes of score and box (pixels, the largest of four sides) of what is found again; how many are not."""
    if len(alone) == 0 or len(beside) == 0:
        return [], [], len(alone) + len(beside)
    iou = pairwise_iou(alone.pred_boxes, beside.pred_boxes)
    iou[alone.pred_classes[:, None] != beside.pred_classes[None]] = 0
    best, index = iou.max(dim=1)
    lost = int((best <= 0.5).sum()) + int((iou.max(dim=0).values <= 0.5).sum())
    found, index = best > 0.5, index[best > 0.5]
    scores = (alone.scores[found] - beside.scores[index]).abs()
    boxes = (alone.pred_boxes.tensor[found] - beside.pred_boxes.tensor[index]).abs().amax(dim=1)
    return scores.tolist(), boxes.tolist(), lost


@torch.no_grad()
def measure(model: nn.Module, batches: list[dict]) -> str:
    """Cells of a row of the table."""
    scores, boxes, lost, number = [], [], 0, 0
    for inputs in batches:
        alone = model([inputs])[0]["instances"].to("cpu")
        found = compare(alone, model(with_mate(inputs))[0]["instances"].to("cpu"))
        scores, boxes, lost, number = scores + found[0], boxes + found[1], lost + found[2], number + len(alone)
    if not scores:
        return f"{number} | {lost} | | | | "
    mean = sum(scores) / len(scores)
    return f"{number} | {lost} | {mean:.1e} | {max(scores):.1e} | {sum(boxes) / len(boxes):.1e} | {max(boxes):.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="NAME=CONFIG[,key=value...]")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--title", default="Batch mates")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = [
        f"# {args.title}",
        "",
        f"{date.today()}, torch {torch.__version__}, {engine.current()} engine; the first {args.images} validation "
        "images, each alone and beside an image of 1.5 times its sides. Made by `benchmarks/batch_mates.py`.",
        "",
        "| model | detections | lost or gained | score, mean change | largest | box, mean change, px | largest |",
        "|---|---|---|---|---|---|---|",
    ]
    for text in args.configs:
        name, _, rest = text.partition("=")
        config, *overrides = rest.split(",")
        run, model = load_trained(config, "", overrides)
        _, loader, _ = next(run.build_test_sets(None))
        batches = [batch[0] for batch, _ in zip(loader, range(args.images))]
        lines.append(f"| {name} | {measure(model.eval(), batches)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
