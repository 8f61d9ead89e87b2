#!/usr/bin/env python3
"""Measure the native ops against eager PyTorch, torch.compile of it and the best library alternative.

    benchmarks/ops/run.py [--device cpu] [--threads 2] [--only lip_pool2d] [--seconds 8] [--output FILE]

Correctness is asserted before anything is timed. Prints a Markdown table a case and saves them together
(benchmarks/results/ops_<device>.md). POT and GeomLoss join where they are installed (pip install pot geomloss).
"""

import argparse
import importlib
import platform
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from benchmarks.ops import harness  # noqa: E402
from shared.ops import library  # noqa: E402

OPS = ("sinkhorn", "soft_roi_pool", "lip_pool2d", "label_maps", "ln_mse")


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=OPS, action="append")
    parser.add_argument("--seconds", type=float, default=8.0, help="time spent on each case")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    library.use_reference()  # says how to build, where there is no build
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    bandwidth = harness.copy_bandwidth(device)
    parts = [
        "# Native ops",
        f"{date.today()}, {machine(device)}, {args.threads} threads, torch {torch.__version__}, "
        f"build {library.build_info()['cpu']}, copy bandwidth {bandwidth / 1e9:.1f} GB/s (read + write). "
        "Made by `benchmarks/ops/run.py`; medians ± half the interquartile range, variants in turns in one process, "
        "forward with a graph for backward. Peak: bytes allocated at the worst moment of forward + backward.",
    ]
    print("\n\n".join(parts), flush=True)
    for name in args.only or OPS:
        for case in importlib.import_module(f"benchmarks.ops.{name}").cases(device):
            parts.append(harness.table(case, harness.measure(case, bandwidth, args.seconds)))
            print("\n" + parts[-1], flush=True)
    output = args.output or (None if args.only else ROOT / "benchmarks" / "results" / f"ops_{device.type}.md")
    if output:
        output.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
