"""No object, one pixel, one object, 200 objects in an image; one class and 1000: every method trains a step with finite
losses and gradients and detects; a training run and its evaluation do as well."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import train_net
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tests.reliability import methods
from tests.reliability.corpus import LAZY
from tests.reliability.methods import METHODS, SIZE, build

DETECTORS = [name for name in METHODS if not name.startswith("classifier")]
FIRST = ("mask_rcnn", "retinanet", "internet_ot", "depla", "labelenc_step1", "lip", "msfm", "musu", "reppoints")
SCENES = ("none", "one pixel", "one", "200", "one and none")
CLASSES = (1, 1000)


def boxes_of(scene: str) -> list[torch.Tensor]:
    """(N, 4) for each of two images."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=rng) * (SIZE - 8)
    many = torch.cat([corners, corners + 1 + torch.rand(200, 2, generator=rng) * 7], dim=1)
    one = torch.tensor([[8.0, 8.0, 40.0, 56.0]])
    pixels = torch.tensor([[0.0, 0, 1, 1], [63, 63, 64, 64], [31, 7, 32, 8]])
    return {
        "none": [one[:0], one[:0]],
        "one pixel": [pixels, pixels[:1]],
        "one": [one, one],
        "200": [many, many],
        "one and none": [one, one[:0]],
    }[scene]


def make_batch(scene: str, classes: int) -> list[dict]:
    rng = torch.Generator().manual_seed(1)
    batch = []
    for boxes in boxes_of(scene):
        masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist()):
            mask[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)] = True
        labels = torch.randint(0, classes, (len(boxes),), generator=rng)
        target = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes), gt_classes=labels, gt_masks=BitMasks(masks))
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        batch.append({"image": image, "instances": target, "height": SIZE, "width": SIZE})
    return batch


def cases() -> list:
    """By default each scene with few methods, and each of those with few scenes; the whole product with --slow."""
    rows = []
    for i, name in enumerate(DETECTORS):
        for j, scene in enumerate(SCENES):
            for classes in CLASSES:
                first = name in FIRST and scene in ("none", SCENES[1 + i % 3]) and classes == CLASSES[(i + j) % 2]
                rows.append(pytest.param(name, scene, classes, marks=() if first else pytest.mark.slow))
    return rows


@pytest.mark.parametrize("name, scene, classes", cases())
def test_a_step_and_detections(name, scene, classes, monkeypatch):
    monkeypatch.setattr(methods, "CLASSES", classes)
    model, batch = build(name, METHODS[name]("BN")), make_batch(scene, classes)
    torch.manual_seed(2)
    with EventStorage(2):
        losses = model(batch)
        assert losses and all(loss.isfinite() for loss in losses.values()), losses
        sum(losses.values()).backward()
        getattr(model, "after_backward", lambda: None)()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)

    model.eval()
    with torch.no_grad():
        outputs = model([{k: x[k] for k in ("image", "height", "width")} for x in batch])
    assert len(outputs) == 2
    for output in outputs:
        found = output["instances"]
        assert found.pred_boxes.tensor.isfinite().all() and found.scores.isfinite().all()
        assert len(found) == 0 or found.pred_classes.max() < classes
        assert len(found) <= 100 and found.image_size == (SIZE, SIZE)


# ---------------------------------------------------------------- a whole run
def write_set(folder, boxes: list[list], classes: int) -> list[str]:
    """A set in COCO's format with these XYWH boxes in its images of 64 px; returns its two paths."""
    root = folder / "images"
    root.mkdir(parents=True)
    rows, annotations = [], []
    for i, of_image in enumerate(boxes, start=1):
        pixels = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append({"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE})
        for x, y, w, h in of_image:
            row = {"id": len(annotations) + 1, "image_id": i, "category_id": len(annotations) % classes + 1}
            annotations.append({**row, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)]
    (folder / "a.json").write_text(json.dumps(dict(images=rows, annotations=annotations, categories=categories)))
    return [str(folder / "a.json"), str(root)]


PIXEL, LARGE = [7, 7, 1, 1], [8, 8, 40, 40]
MANY = [[3 * (i % 20), 6 * (i // 20), 3, 5] for i in range(200)]
RUNS = {
    "no objects in some images": ([[LARGE], [], []], [[LARGE], []], 3),
    "no objects to evaluate on": ([[LARGE], [LARGE]], [[], []], 3),
    "one pixel objects": ([[PIXEL], [PIXEL, [0, 0, 1, 1]]], [[PIXEL]], 3),
    "200 objects": ([MANY, MANY], [MANY], 3),
    "one class": ([[LARGE], [LARGE]], [[LARGE]], 1),
    "1000 classes": ([MANY, [LARGE]], [MANY], 1000),
}


@pytest.mark.parametrize(
    "config", [LAZY, pytest.param(LAZY.replace("faster_rcnn", "retinanet"), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_trains_and_evaluates(name, config, tmp_path, capsys):
    train, val, classes = RUNS[name]
    run = tmp_path / "run"
    paths = [*write_set(tmp_path / "train", train, classes), *write_set(tmp_path / "val", val, classes)]
    flags = [
        word for pair in zip(("--train-json", "--train-images", "--val-json", "--val-images"), paths) for word in pair
    ]
    overrides = ["train.max_iter=2", "+dataloader.train.dataset.filter_empty=false", f"train.output_dir={run}"]
    train_net.cli(["--config-file", config, *flags, *overrides])
    losses = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(row["total_loss"]) for row in losses if "total_loss" in row) and losses
    results = json.loads((run / "inference/results.json").read_text())["bbox"]
    assert "AP50" in results and len([k for k in results if k.startswith("AP-")]) == (classes if classes > 1 else 0)
    assert (name == "no objects to evaluate on") == math.isnan(results["AP"])
