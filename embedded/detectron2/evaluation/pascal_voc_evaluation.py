"""PASCAL VOC's average precision. VOC boxes count pixels from 1 and include both ends."""

import logging
import os
import xml.etree.ElementTree as ET
from collections import OrderedDict, defaultdict
from functools import cache

import numpy as np
import torch
from torch import Tensor

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

THRESHOLDS = range(50, 100, 5)  # IoU in percent
Detection = tuple[str, float, list[float]]  # image id, score, VOC box


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """{"bbox": {"AP", "AP50", "AP75"}} in percent, means over the classes; AP over 50, 55, ... 95.

    The year in the metadata decides between 11-point AP (2007) and the area (2012). Numbers come
    near the official Matlab code's, which evaluates hidden fields that XML files lack.
    """

    def __init__(self, dataset_name: str):
        meta = MetadataCatalog.get(dataset_name)
        if meta.year not in (2007, 2012):
            raise ValueError(f"Dataset {dataset_name!r} has year {meta.year}, not 2007 or 2012.")
        self._class_names = meta.thing_classes
        self._use_07_metric = meta.year == 2007
        self._dirname, self._split = meta.dirname, meta.split
        self.reset()

    def reset(self) -> None:
        self._detections: dict[int, list[Detection]] = defaultdict(list)  # by class

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """inputs: dicts with "image_id"; outputs: dicts with "instances" in image pixels."""
        for x, output in zip(inputs, outputs):
            instances = output["instances"].to(torch.device("cpu"))
            boxes = _to_voc_boxes(instances.pred_boxes.tensor)
            scores = _rounded(instances.scores, 3)
            for box, score, cls in zip(boxes, scores, instances.pred_classes.tolist()):
                self._detections[cls].append((str(x["image_id"]), score, box))

    def evaluate(self) -> OrderedDict | None:
        """None on other processes than the main one."""
        detections = defaultdict(list)
        for part in comm.gather(dict(self._detections), dst=0):
            for cls, rows in part.items():
                detections[cls].extend(rows)
        if not comm.is_main_process():
            return None
        truth = self._load_truth()
        per_class = [
            _class_aps(detections[k], truth, name, self._use_07_metric) for k, name in enumerate(self._class_names)
        ]
        ap50 = {name: aps[0] for name, aps in zip(self._class_names, per_class)}
        logging.getLogger(__name__).info("AP50 by class:\n" + create_small_table(ap50))
        ap = np.mean(per_class, axis=0)
        metrics = {"AP": ap.mean(), "AP50": ap[0], "AP75": ap[THRESHOLDS.index(75)]}
        return OrderedDict(bbox={k: float(v) for k, v in metrics.items()})

    def _load_truth(self) -> dict[str, list[dict]]:
        """Objects of each image of the split."""
        with PathManager.open(os.path.join(self._dirname, "ImageSets", "Main", self._split + ".txt")) as f:
            ids = f.read().split()
        folder = PathManager.get_local_path(os.path.join(self._dirname, "Annotations"))
        return {i: parse_rec(os.path.join(folder, i + ".xml")) for i in ids}


@cache
def parse_rec(filename: str) -> list[dict]:
    """Objects of one XML file: name, pose, truncated, difficult, bbox (4 ints). Read once."""
    with PathManager.open(filename) as f:
        root = ET.parse(f).getroot()
    return [
        {
            "name": obj.findtext("name"),
            "pose": obj.findtext("pose", "Unspecified"),
            "truncated": int(obj.findtext("truncated", "0")),
            "difficult": int(obj.findtext("difficult", "0")),
            "bbox": [int(obj.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")],
        }
        for obj in root.findall("object")
    ]


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """rec, prec (n,): after each detection. Area under the falling envelope, or 11 points of it."""
    if use_07_metric:
        points = np.arange(0.0, 1.1, 0.1)
        return sum(np.max(prec[rec >= t], initial=0) / len(points) for t in points)
    rec = np.concatenate([[0.0], rec, [1.0]])
    prec = np.concatenate([[0.0], prec, [0.0]])
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return np.sum(np.diff(rec) * envelope[1:])


def _rounded(values: Tensor, digits: int) -> list[float]:
    """As in the text files of VOC's development kit, which both years' numbers are based on."""
    return [float(f"{v:.{digits}f}") for v in values.tolist()]


def _to_voc_boxes(boxes: Tensor) -> list[list[float]]:
    return [_rounded(box, 1) for box in boxes + boxes.new_tensor([1, 1, 0, 0])]


def _class_aps(
    detections: list[Detection], truth: dict[str, list[dict]], name: str, use_07_metric: bool
) -> list[float]:
    """AP of class `name` at each of THRESHOLDS, in percent.

    A class absent from the split: 0 without detections; with some, 0 by 11 points, nan by area.
    """
    objects = {k: [o for o in v if o["name"] == name] for k, v in truth.items()}
    first = dict(zip(objects, np.cumsum([0] + [len(v) for v in objects.values()])))
    difficult = np.array([o["difficult"] for v in objects.values() for o in v], dtype=bool)

    # quicksort, not stable: the order of equal scores is upstream's, and so is the number
    order = np.argsort([-score for _, score, _ in detections])
    best_iou = np.full(len(detections), -np.inf)
    best_object = np.zeros(len(detections), dtype=int)  # place in `difficult`
    for rank, k in enumerate(order):
        image_id, _, box = detections[k]
        if objects[image_id]:
            iou = _inclusive_iou(np.array(box), np.array([o["bbox"] for o in objects[image_id]]))
            best_iou[rank], best_object[rank] = iou.max(), first[image_id] + iou.argmax()

    aps = []
    for threshold in THRESHOLDS:
        hit = best_iou > threshold / 100
        easy = hit.copy()
        easy[hit] = ~difficult[best_object[hit]]
        tp = np.zeros(len(detections), dtype=bool)
        ranks = np.flatnonzero(easy)
        tp[ranks[np.unique(best_object[easy], return_index=True)[1]]] = True  # first on its object
        fp = ~hit | (easy & ~tp)
        tps, fps = np.cumsum(tp), np.cumsum(fp)
        with np.errstate(invalid="ignore"):
            recall = tps / float((~difficult).sum())
        precision = tps / np.maximum(tps + fps, np.finfo(np.float64).eps)
        aps.append(100 * float(voc_ap(recall, precision, use_07_metric)))
    return aps


def _inclusive_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """box (4,), others (n, 4): IoU (n,) of boxes whose end pixels belong to them."""

    def area(low, high):
        return np.prod(np.maximum(high - low + 1, 0), axis=-1)

    low, high = np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])
    intersection = area(low, high)
    union = area(box[:2], box[2:]) + area(others[:, :2], others[:, 2:]) - intersection
    return intersection / union
