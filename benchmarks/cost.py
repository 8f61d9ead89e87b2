#!/usr/bin/env python3
"""What methods cost against their plain host, in one run.

    benchmarks/cost.py plain=A.py method=B.py [--size 512 512] [--images 2] [--objects 8] [--rounds 5] [--device cpu]
        [--threads 2] [--part backbone] [--output table.md] [--title TEXT]

For each config (NAME=CONFIG[,key=value...]): parameters in training and at inference, multiply-adds of an inference,
seconds of a training step (forward, backward, SGD) and of an inference, and peak memory of the step. The models take
turns on the same random images and boxes; medians with half the interquartile range; ratios to the first. With
`--part backbone` the backbones alone, with their pyramids; the loss is then the mean square of their maps. Among the
overrides, SHARED_OPS=reference runs that config's native ops in plain PyTorch.
"""

import argparse
import gc
import logging
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import projects  # noqa: E402, F401  chooses the engine
from benchmarks.ops.harness import peak_of  # noqa: E402
from benchmarks.ops.run import machine  # noqa: E402
from detectron2.config import instantiate  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402
from detectron2.utils.analysis import flop_count_operators  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from shared import engine  # noqa: E402
from shared.config import load_config  # noqa: E402


def make_batch(images: int, size: tuple[int, int], objects: int, classes: int, masks: bool) -> list[dict]:
    """Random images (3, H, W) in 0..255 with `objects` boxes of sides from a tenth to a half of the image."""
    rng = torch.Generator().manual_seed(0)
    height, width = size
    batch = []
    for _ in range(images):
        sides = torch.rand(objects, 2, generator=rng) * 0.4 + 0.1
        corner = torch.rand(objects, 2, generator=rng) * (1 - sides)
        scale = torch.tensor([width, height])
        boxes = torch.cat([corner * scale, (corner + sides) * scale], dim=1)
        target = Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.randint(classes, (objects,), generator=rng))
        if masks:
            target.gt_masks = BitMasks(torch.ones(objects, height, width, dtype=torch.bool))
        image = torch.randint(256, (3, height, width), generator=rng, dtype=torch.uint8)
        batch.append({"image": image, "instances": target, "height": height, "width": width})
    return batch


class MeanSquare(torch.nn.Module):
    """A backbone behind a detector's interface: in training the mean square of its maps as a loss."""

    def __init__(self, backbone: torch.nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        device = next(self.parameters()).device
        maps = self.backbone(torch.stack([x["image"] for x in batch]).to(device, torch.float32) / 255)
        return {name: x.square().mean() for name, x in maps.items()} if self.training else maps


class Subject:
    """One config: its model (or the model's backbone alone), optimiser and times."""

    def __init__(self, text: str, device: str, part: str):
        self.name, _, rest = text.partition("=")
        config, *overrides = rest.split(",")
        self.ops = "reference" if "SHARED_OPS=reference" in overrides else "native"
        self.cfg = load_config(str(ROOT / config), [o for o in overrides if not o.startswith("SHARED_OPS=")])
        torch.manual_seed(0)
        if part == "backbone":
            self.model = MeanSquare(instantiate(self.cfg.model.backbone)).to(device)
        else:
            self.model = instantiate(self.cfg.model).to(device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
        self.step_times, self.inference_times = [], []

    def step(self, batch: list[dict]) -> None:
        os.environ["SHARED_OPS"] = self.ops
        self.model.train()
        with EventStorage():
            loss = sum(self.model(batch).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self, batch: list[dict]) -> None:
        os.environ["SHARED_OPS"] = self.ops
        self.model.eval()
        self.model(batch[:1])


def timed(function, *args) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cell(values: list[float], base: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    median = statistics.median(values)
    return f"{median:.3f} ± {(high - low) / 2:.3f} ({median / statistics.median(base):.2f}x)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="NAME=CONFIG")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=("model", "backbone"), default="model")
    parser.add_argument("--title", default="Cost")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    subjects = [Subject(text, args.device, args.part) for text in args.configs]
    classes = min(s.cfg.model.roi_heads.num_classes if "roi_heads" in s.cfg.model else 10 for s in subjects)
    masks = any("mask_head" in s.cfg.model.get("roi_heads", {}) for s in subjects)
    batch = make_batch(args.images, tuple(args.size), args.objects, classes, masks)
    rows = []
    for s in subjects:
        s.step(batch)
        s.infer(batch)
    for _ in range(max(args.rounds, 3)):
        for s in subjects:
            s.step_times.append(timed(s.step, batch))
            s.inference_times.append(timed(s.infer, batch))
    first = subjects[0]
    for s in subjects:
        gc.collect()
        memory = peak_of(device, s.step, batch)[1] / 1e6
        s.model.eval()
        macs = sum(flop_count_operators(s.model, batch[:1]).values())
        parameters = sum(p.numel() for p in s.model.parameters()) / 1e6
        rows.append(
            f"| {s.name} | {parameters:.2f} | {macs:.2f} | {cell(s.step_times, first.step_times)} "
            f"| {cell(s.inference_times, first.inference_times)} | {memory:.0f} |"
        )
    text = "\n".join(
        [
            f"# {args.title}",
            "",
            f"{date.today()}, {machine(device)}, {args.threads} threads, torch {torch.__version__}, "
            f"{engine.current()} engine. {'Backbones with their pyramids. ' if args.part == 'backbone' else ''}"
            f"{args.images} image(s) of {args.size[0]} x {args.size[1]} px with {args.objects} objects a step, one at "
            f"inference (multiply-adds of it); random weights, {max(args.rounds, 3)} rounds in turns; "
            "(ratio to the first). Made by `benchmarks/cost.py`.",
            "",
            "| config | parameters, M | G multiply-adds | training step, s | inference, s | peak of a step, MB |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
