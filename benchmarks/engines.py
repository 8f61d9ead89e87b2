#!/usr/bin/env python3
"""The embedded engine against upstream Detectron2, in one run on one machine.

    benchmarks/engines.py [--rounds 3] [--steps 5] [--threads 2]

Needs an environment with upstream installed. Each engine runs in processes of its own, in turns
(A B B A ...), with the same weights, images and seeds. First both must agree: losses, gradient
norms and detections. Then: seconds per training step and per inference of Faster R-CNN R50-FPN at
320 px with 2 images, images/s of the data loader (one process and one worker), import time.
Prints a Markdown table of medians; a ratio below 1 means that the embedded engine takes less time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = {  # name in the worker's output: (title, unit, less is better)
    "import": ("import of modeling, data and engine", "s", True),
    "train": ("training step, 2 x 320 px", "s", True),
    "inference": ("inference, 1 x 320 px", "s", True),
    "loader0": ("data loader, in the main process", "images/s", False),
    "loader1": ("data loader, one worker", "images/s", False),
}


# ---------------------------------------------------------------- one engine, in its own process
def build_model():
    import torch

    from detectron2.config import instantiate
    from shared.config import load_config

    cfg = load_config(str(ROOT / "configs/baselines/faster_rcnn_r50_fpn_1x.py"))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    for name, value in model.named_buffers():
        if name.endswith("conv3.norm.weight"):
            value.mul_(0.2)  # random weights under frozen norms would grow from block to block
    return model


def make_batch(n: int):
    import torch

    from detectron2.structures import Boxes, Instances

    rng = torch.Generator().manual_seed(1)
    batch = []
    for _ in range(n):
        corner = torch.rand(8, 2, generator=rng) * 200
        boxes = torch.cat([corner, corner + 20 + torch.rand(8, 2, generator=rng) * 90], 1)
        instances = Instances((320, 320), gt_boxes=Boxes(boxes), gt_classes=torch.arange(8))
        image = (torch.rand(3, 320, 320, generator=rng) * 255).to(torch.uint8)
        batch.append({"image": image, "height": 320, "width": 320, "instances": instances})
    return batch


def seconds(function, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def loader_speed(folder: str, workers: int, images: int) -> float:
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.data import transforms as T
    from detectron2.data.datasets import load_coco_json

    records = load_coco_json(os.path.join(folder, "annotations.json"), folder + "/images", "bench")
    mapper = DatasetMapper(
        True, augmentations=[T.ResizeShortestEdge([320], 640, "choice"), T.RandomFlip()], image_format="BGR"
    )
    loader = iter(build_detection_train_loader(records, mapper=mapper, total_batch_size=2, num_workers=workers))
    next(loader)
    start = time.perf_counter()
    for _ in range(images // 2):
        next(loader)
    return images / (time.perf_counter() - start)


def worker(args) -> dict:
    start = time.perf_counter()
    from shared import engine

    engine.activate()
    import detectron2.data
    import detectron2.engine
    import detectron2.modeling  # noqa: F401

    out = {"import": time.perf_counter() - start}
    import torch

    from detectron2.utils.events import EventStorage

    torch.set_num_threads(args.threads)
    model, batch = build_model(), make_batch(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()

    def step():
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        return losses

    torch.manual_seed(5)
    losses = step()
    out["check"] = {k: float(v.detach()) for k, v in losses.items()}
    out["check"]["gradients"] = sum(float(p.grad.double().norm()) for p in model.parameters() if p.grad is not None)
    out["train"] = seconds(step, args.steps)
    model.eval()
    predictor = model.roi_heads.box_predictor
    threshold, predictor.test_score_thresh = predictor.test_score_thresh, 0.0
    with torch.no_grad():
        instances = model(batch[:1])[0]["instances"]
        assert len(instances) > 0
        predictor.test_score_thresh = threshold
        out["check"]["detections"] = float(instances.pred_boxes.tensor.double().sum())
        out["check"]["scores"] = float(instances.scores.double().sum())
        out["inference"] = seconds(lambda: model(batch[:1]), 3 * args.steps)
    out["loader0"] = loader_speed(args.folder, 0, args.images)
    out["loader1"] = loader_speed(args.folder, 1, args.images)
    out["torch"] = torch.__version__
    return out


# ---------------------------------------------------------------- both, in turns
def run_worker(name: str, args, folder: str) -> dict:
    command = [sys.executable, __file__, "--worker", "--folder", folder]
    for key in ("steps", "threads", "images"):
        command += [f"--{key}", str(getattr(args, key))]
    env = {**os.environ, "DETECTRON2": name, "OMP_NUM_THREADS": str(args.threads)}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{name}: {result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def make_images(folder: str) -> None:
    from tests.scenes import make_coco

    make_coco(Path(folder), images=40, objects=6, size=480)


def agree(a: dict, b: dict) -> None:
    for key, value in a["check"].items():
        other = b["check"][key]
        if abs(value - other) > 1e-4 * max(1.0, abs(value)):
            sys.exit(f"The engines disagree on {key}: {value} and {other}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args)))
        return
    results: dict[str, list[dict]] = {"embedded": [], "upstream": []}
    with tempfile.TemporaryDirectory() as folder:
        make_images(folder)
        for i in range(args.rounds):
            for name in ("embedded", "upstream") if i % 2 == 0 else ("upstream", "embedded"):
                results[name].append(run_worker(name, args, folder))
            agree(results["embedded"][-1], results["upstream"][-1])
    print(table(results, args))


def table(results: dict[str, list[dict]], args) -> str:
    lines = [
        f"{date.today()}, {platform.processor() or platform.machine()}, {args.threads} threads, "
        f"torch {results['embedded'][0]['torch']}; median of {args.rounds} processes (spread: max - min)",
        "",
        "| | embedded | upstream | embedded / upstream, time |",
        "|---|---|---|---|",
    ]
    for key, (title, unit, less) in ROWS.items():
        cells, medians = [], {}
        for name in ("embedded", "upstream"):
            values = [r[key] for r in results[name]]
            medians[name] = statistics.median(values)
            cells.append(f"{medians[name]:.3g} {unit} ({max(values) - min(values):.2g})")
        ratio = medians["embedded"] / medians["upstream"]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {ratio if less else 1 / ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
