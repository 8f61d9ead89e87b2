"""Example detections: the same images of the test set for every arm, beside what is annotated on them."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import Visualizer
from shared.errors import UserError
from tools.comparison.arms import Keys
from tools.comparison.runs import cuda_override
from tools.predict import make_cfg, predict

SIDE = 420  # pixels of a picture's longer side
IOU = 0.5  # from which a detection of the right class counts as right
LABEL_POINTS = 12  # 17 pixels, and 10 where the page shows the picture
LETTER_WIDTH, LABEL_HEIGHT = 11, 20  # pixels that a label has at least at the right and lower edge
TRUTH, RIGHT, WRONG = (0.35, 0.75, 1.0), (0.3, 0.95, 0.3), (1.0, 0.6, 0.2)  # RGB


class Picture(NamedTuple):
    """jpeg: as a data URI. found, false: objects found, detections that are none of them; of the truth: objects, 0."""

    jpeg: str
    found: int
    false: int


def choose_images(set_name: str, count: int) -> list[dict]:
    """Dataset dicts of `count` images with objects, evenly spaced over the set."""
    dicts = [d for d in DatasetCatalog.get(set_name) if _objects(d)]
    count = min(count, len(dicts))
    places = [round(i * (len(dicts) - 1) / max(count - 1, 1)) for i in range(count)]
    return [dicts[i] for i in places]


def _objects(image: dict) -> list[dict]:
    return [a for a in image.get("annotations", []) if not a.get("iscrowd")]


def truth_of(image: dict) -> tuple[Boxes, list[int]]:
    """Boxes, XYXY in pixels, and classes of what is annotated; crowds apart."""
    objects = _objects(image)
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)), [a["category_id"] for a in objects]


def shown(instances: Instances, objects: int, threshold: float | None) -> Instances:
    """Best score first: those from `threshold` up, or without one as many as there are objects."""
    instances = instances[instances.scores.argsort(descending=True)]
    return instances[:objects] if threshold is None else instances[instances.scores >= threshold]


def right_ones(instances: Instances, boxes: Boxes, classes: list[int]) -> list[bool]:
    """Whether a detection, best first, is an object that none before it was: same class, IoU of at least 0.5."""
    overlap = pairwise_iou(instances.pred_boxes, boxes).numpy()
    free, right = np.ones(len(classes), dtype=bool), []
    for row, category in zip(overlap, instances.pred_classes.tolist()):
        fits = np.where(free & (np.array(classes) == category), row, 0)
        best = int(fits.argmax()) if len(fits) else -1
        right.append(best >= 0 and bool(fits[best] >= IOU))
        if right[-1]:
            free[best] = False
    return right


def draw(image: np.ndarray, boxes: np.ndarray, labels: list[str], right: list[bool], color: tuple) -> str:
    """A JPEG as a data URI. image: BGR. Right ones have a full line in `color`, wrong ones a dashed one in WRONG."""
    scale = SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    drawn = Visualizer(np.asarray(Image.fromarray(image[:, :, ::-1]).resize(size)))
    boxes = boxes * scale
    order = sorted(range(len(labels)), key=lambda i: -float(np.prod(boxes[i, 2:] - boxes[i, :2])))
    for i in order:
        drawn.draw_box(boxes[i], alpha=1, edge_color=color if right[i] else WRONG, line_style="-" if right[i] else "--")
    for i in order:
        place = boxes[i, :2].clip(0, np.array(size) - (LETTER_WIDTH * len(labels[i]), LABEL_HEIGHT))
        style = {"font_size": LABEL_POINTS, "horizontal_alignment": "left"}
        drawn.draw_text(labels[i], place, color=color if right[i] else WRONG, **style)
    file = io.BytesIO()
    Image.fromarray(drawn.output.get_image()).save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def draw_truth(image: dict, names: list[str]) -> Picture:
    boxes, classes = truth_of(image)
    labels = [_name(names, c) for c in classes]
    pixels = read_image(image["file_name"], format="BGR")
    return Picture(draw(pixels, boxes.tensor.numpy(), labels, [True] * len(labels), TRUTH), len(labels), 0)


def draw_detections(folder: Path, keys: Keys, images: list[dict], names: list[str], threshold: float | None):
    """A run's pictures of the images. UserError: it is no detector, or its weights are gone."""
    weights = folder / "model_final.pth"
    if not weights.exists():
        raise UserError(f"{weights} does not exist.")
    cfg = make_cfg(str(folder / "config.yaml"), str(weights), cuda_override(keys.device))
    pictures = []
    files = [image["file_name"] for image in images]
    for image, (_, pixels, instances) in zip(images, predict(cfg, files, 0.0)):
        boxes, classes = truth_of(image)
        instances = shown(instances, len(classes), threshold)
        right = right_ones(instances, boxes, classes)
        pairs = zip(instances.pred_classes.tolist(), instances.scores.tolist())
        labels = [f"{_name(names, c)} {100 * score:.0f}%" for c, score in pairs]
        jpeg = draw(pixels, instances.pred_boxes.tensor.numpy(), labels, right, RIGHT)
        pictures.append(Picture(jpeg, sum(right), len(right) - sum(right)))
    return pictures


def _name(names: list[str], category: int) -> str:
    return names[category] if category < len(names) else str(category)
