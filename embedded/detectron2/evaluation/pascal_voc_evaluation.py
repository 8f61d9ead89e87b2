"""PASCAL VOC's average precision. VOC boxes count pixels from 1 and include both ends."""

import logging
import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from functools import cache

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator

THRESHOLDS = range(50, 100, 5)  # IoU in percent


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """{"bbox": {"AP", "AP50", "AP75"}} in percent, means over the classes; AP over 50, 55, ... 95.
    The year in the metadata decides between 11-point AP (2007) and the area (2012)."""

    def __init__(self, dataset_name: str):
        self._meta = MetadataCatalog.get(dataset_name)
        if self._meta.year not in (2007, 2012):
            raise ValueError(f"Dataset {dataset_name!r} has year {self._meta.year}, not 2007 or 2012.")
        self.reset()

    def reset(self) -> None:
        self._detections: dict[int, list[tuple]] = defaultdict(list)  # by class: image id, score, VOC box

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """inputs: dicts with "image_id"; outputs: dicts with "instances" in image pixels."""
        for x, output in zip(inputs, outputs):
            instances = output["instances"].to(torch.device("cpu"))
            boxes = (instances.pred_boxes.tensor + torch.tensor([1, 1, 0, 0])).tolist()
            for box, score, cls in zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist()):
                # the decimals of the text files of VOC's development kit, which both years' numbers are based on
                row = (str(x["image_id"]), float(f"{score:.3f}"), [float(f"{v:.1f}") for v in box])
                self._detections[cls].append(row)

    def evaluate(self) -> dict | None:
        """None on other processes than the main one."""
        parts = comm.gather(dict(self._detections), dst=0)
        if not comm.is_main_process():
            return None
        folder = PathManager.get_local_path(os.path.join(self._meta.dirname, "Annotations"))
        with PathManager.open(os.path.join(self._meta.dirname, "ImageSets", "Main", self._meta.split + ".txt")) as f:
            truth = {i: parse_rec(os.path.join(folder, i + ".xml")) for i in f.read().split()}
        names, per_class = self._meta.thing_classes, []
        for k, name in enumerate(names):
            detections = [row for part in parts for row in part.get(k, [])]
            per_class.append(_class_aps(detections, truth, name, use_07_metric=self._meta.year == 2007))
        table = create_small_table({name: aps[0] for name, aps in zip(names, per_class)})
        logging.getLogger(__name__).info(f"AP50 by class:\n{table}")
        ap = np.mean(per_class, axis=0)
        return {"bbox": {"AP": float(ap.mean()), "AP50": float(ap[0]), "AP75": float(ap[THRESHOLDS.index(75)])}}


@cache
def parse_rec(filename: str) -> list[dict]:
    """Objects of one XML file: name, difficult, bbox (4 ints). Read once."""
    with PathManager.open(filename) as f:
        root = ET.parse(f).getroot()
    objects = []
    for obj in root.findall("object"):
        box = [int(obj.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
        objects.append({"name": obj.findtext("name"), "difficult": int(obj.findtext("difficult", "0")), "bbox": box})
    return objects


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """rec, prec (n,): after each detection. Area under the falling envelope, or 11 points of it."""
    if use_07_metric:
        return sum(np.max(prec[rec >= t], initial=0) / 11 for t in np.arange(0.0, 1.1, 0.1))
    rec, prec = np.concatenate([[0.0], rec, [1.0]]), np.concatenate([[0.0], prec, [0.0]])
    return np.sum(np.diff(rec) * np.maximum.accumulate(prec[::-1])[::-1][1:])


def _class_aps(detections: list[tuple], truth: dict[str, list[dict]], name: str, use_07_metric: bool) -> list[float]:
    """AP of class `name` at each of THRESHOLDS, in percent.
    A class absent from the split: 0 without detections; with some, 0 by 11 points, nan by area."""
    objects = {k: [o for o in v if o["name"] == name] for k, v in truth.items()}
    first = dict(zip(objects, np.cumsum([0] + [len(v) for v in objects.values()])))
    # the last: that of no object
    difficult = np.array([o["difficult"] for v in objects.values() for o in v] + [False], dtype=bool)
    # quicksort, not stable: the order of equal scores is upstream's, and so is the number
    order = np.argsort([-score for _, score, _ in detections])
    best_iou, best_object = np.full(len(order), -np.inf), np.full(len(order), -1)  # place in `difficult`
    for rank, k in enumerate(order):
        image_id, _, box = detections[k]
        if objects[image_id]:
            iou = _inclusive_iou(np.array(box), np.array([o["bbox"] for o in objects[image_id]]))
            best_iou[rank], best_object[rank] = iou.max(), first[image_id] + iou.argmax()
    aps = []
    for threshold in THRESHOLDS:
        hit = best_iou > threshold / 100
        easy = hit & ~difficult[best_object]
        tp = np.zeros(len(order), dtype=bool)
        tp[np.flatnonzero(easy)[np.unique(best_object[easy], return_index=True)[1]]] = True  # first on its object
        tps, fps = np.cumsum(tp), np.cumsum(~hit | (easy & ~tp))
        with np.errstate(invalid="ignore"):
            recall = tps / float((~difficult[:-1]).sum())
        precision = tps / np.maximum(tps + fps, np.finfo(np.float64).eps)
        aps.append(100 * float(voc_ap(recall, precision, use_07_metric)))
    return aps


def _inclusive_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """box (4,), others (n, 4): IoU (n,) of boxes whose end pixels belong to them."""
    common = np.concatenate([np.maximum(others[:, :2], box[:2]), np.minimum(others[:, 2:], box[2:])], axis=1)
    intersection, one, each = (np.prod(np.maximum(b[..., 2:] - b[..., :2] + 1, 0), -1) for b in (common, box, others))
    return intersection / (one + each - intersection)
