#!/usr/bin/env python3
"""Time and peak memory of MuSu's assignment and of ATSS's, on the same scenes in one run.

    benchmarks/assignment.py [--size 800 1333] [--images 1] [--objects 200] [--sides 16 600] [--shapes 1 3 9]
        [--rounds 15] [--device cpu] [--threads 2] [--output table.md]

Random objects with log-uniform sides; decoded boxes are anchors moved by a tenth of their size. The assigners take
turns; medians with half the interquartile range; ratios to ATSS. Before that, MuSu's result must not depend on the size
of its blocks.
"""

import argparse
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import projects  # noqa: E402, F401  chooses the engine
from benchmarks.cost import cell, timed  # noqa: E402
from benchmarks.ops.harness import peak_of  # noqa: E402
from benchmarks.ops.run import machine  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from projects.MuSu import ATSSAssigner, Grid, MuSuAssigner, Scene, tiled_anchors  # noqa: E402
from shared import engine  # noqa: E402

STRIDES, CLASSES = (8, 16, 32, 64, 128), 80
TILINGS = {1: {}, 3: {"aspect_ratios": [0.5, 1.0, 2.0]}, 9: {"octaves": 3, "aspect_ratios": [0.5, 1.0, 2.0]}}


def make_scene(size, images: int, objects: int, sides, shapes: int, device) -> Scene:
    """Maps of the size padded to a multiple of 32 px."""
    rng = torch.Generator().manual_seed(0)
    generator = tiled_anchors(strides=STRIDES, **TILINGS[shapes])
    padded = [-(-side // 32) * 32 for side in size]
    features = [torch.zeros(1, 1, *(-(-side // stride) for side in padded)) for stride in STRIDES]
    anchors = Boxes.cat(generator(features)).tensor
    scale, targets = torch.tensor([size[1], size[0]]), []
    for _ in range(images):
        side = torch.minimum(sides[0] * (sides[1] / sides[0]) ** torch.rand(objects, 2, generator=rng), scale)
        low = torch.rand(objects, 2, generator=rng) * (scale - side)
        boxes, classes = torch.cat([low, low + side], dim=1), torch.randint(CLASSES, (objects,), generator=rng)
        targets.append(Instances(tuple(size), gt_boxes=Boxes(boxes), gt_classes=classes).to(device))
    noise = torch.randn(images, len(anchors), 4, generator=rng)
    decoded = anchors + 0.1 * noise * (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    logits = torch.randn(images, len(anchors), CLASSES, generator=rng) - 3
    grid = Grid.of([x.to(device) for x in features], generator)
    return Scene.of(grid, anchors.to(device), logits.to(device), decoded.to(device), targets)


def check(scene: Scene) -> int:
    """Number of samples; they are the same whatever the blocks."""
    rule = MuSuAssigner()
    whole, parts = rule(scene), replace(rule, max_pairs=10_000)(scene)
    assert torch.equal(whole.anchors, parts.anchors) and torch.equal(whole.gts, parts.gts)
    torch.testing.assert_close(whole[2:], parts[2:])
    return len(whole.anchors)


def rows_of(scene: Scene, shapes: int, rounds: int) -> list[str]:
    assigners = {"ATSS": ATSSAssigner(), "MuSu": MuSuAssigner()}
    times: dict[str, list[float]] = {name: [] for name in assigners}
    samples = {"MuSu": check(scene), "ATSS": len(assigners["ATSS"](scene).anchors)}
    for _ in range(max(rounds, 3)):
        for name, assigner in assigners.items():
            times[name].append(1e3 * timed(assigner, scene))
    rows = []
    for name, assigner in assigners.items():
        memory = peak_of(scene.anchors.device, assigner, scene)[1] / 1e6
        rows.append(
            f"| {shapes} | {len(scene.anchors)} | {name} | {samples[name]} | {cell(times[name], times['ATSS'])} "
            f"| {memory:.1f} |"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--objects", type=int, default=200, help="per image")
    parser.add_argument("--sides", type=float, nargs=2, default=(16, 600), metavar=("MIN", "MAX"), help="pixels")
    parser.add_argument("--shapes", type=int, nargs="+", default=[1, 3, 9], choices=TILINGS, help="anchors a location")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, lines = torch.device(args.device), []
    for shapes in args.shapes:
        lines += rows_of(
            make_scene(args.size, args.images, args.objects, args.sides, shapes, device), shapes, args.rounds
        )
    text = "\n".join(
        [
            "# Cost of the assignment",
            "",
            f"{date.today()}, {machine(device)}, {args.threads} threads, torch {torch.__version__}, {engine.current()} "
            f"engine. {args.images} image(s) of {args.size[0]} x {args.size[1]} px with {args.objects} objects of "
            f"{args.sides[0]:g} to {args.sides[1]:g} px, {CLASSES} classes, P3 to P7; {max(args.rounds, 3)} rounds in "
            "turns; (ratio to ATSS). Made by `benchmarks/assignment.py`.",
            "",
            "| anchors a location | anchors | assigner | samples | ms | peak MB |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
