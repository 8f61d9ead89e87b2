#!/usr/bin/env python3
"""The two forms of RepPoints' convolution at points: torchvision's deformable convolution ("eager") and grid_sample.

    benchmarks/point_conv.py [--device cpu] [--threads 2] [--seconds 8]

On P3 of reppoints_quick.py (8 images) and P4 of the 1x config at 800 x 1344 (2 images). Agreement first.
"""

import argparse
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import projects  # noqa: E402, F401  chooses the engine
from benchmarks.ops.harness import Case, measure  # noqa: E402
from benchmarks.ops.run import machine  # noqa: E402
from projects.Detectors.reppoints_points import PointConv2d  # noqa: E402


def make_case(num_images: int, channels: int, height: int, width: int, device: torch.device) -> Case:
    torch.manual_seed(0)
    conv = PointConv2d(channels, channels, num_points=9).to(device)
    x = torch.randn(num_images, channels, height, width, device=device)
    points = 2 * torch.randn(num_images, 18, height, width, device=device)
    return Case(
        op="PointConv2d",
        title=f"{num_images} x {channels} x {height} x {width}, float32",
        inputs=[x.requires_grad_(), points.requires_grad_(), conv.weight],
        variants={"eager": conv._by_deform_conv, "ours": conv._by_grid_sample},
        bytes_moved=(1, 1),  # not reported
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="time spent on each shape")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{date.today()}, {machine(device)}, {args.threads} threads, torch {torch.__version__}\n")
    print("| shape | form | forward ms | backward ms | peak MB |\n|---|---|---|---|---|")
    for shape in ((8, 64, 24, 32), (2, 256, 50, 84)):
        case = make_case(*shape, device)
        for row in measure(case, bandwidth=1.0, seconds=args.seconds):
            form = {"eager": "deform_conv2d", "ours": "grid_sample"}[row.variant]
            times = f"{row.forward:.1f} ± {row.forward_spread:.1f} | {row.backward:.1f} ± {row.backward_spread:.1f}"
            print(f"| {case.title} | {form} | {times} | {row.peak / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
