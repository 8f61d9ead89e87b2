"""How well a detector's scores choose its boxes: IoU of the top-scored detection of each object."""

from collections import defaultdict

import numpy as np

from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils import comm

MARGIN = 0.05


class AlignmentEvaluator(DatasetEvaluator):
    """For each object the detections of its class whose centre lies inside it; of those the top-scored one, and how far
    its IoU is from the best. For any detector, on its final detections; crowds are left out."""

    def __init__(self, dataset_name: str):
        """dataset_name: registered, with annotations; its images are found by `image_id`."""
        self._objects = {record["image_id"]: _objects_of(record) for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._rows: dict = defaultdict(list)  # by image, which a sampler may deal out twice: (top IoU, best IoU)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, y in zip(inputs, outputs):
            boxes, classes = self._objects[x["image_id"]]
            self._rows[x["image_id"]] = _top_and_best(boxes, classes, y["instances"].to("cpu"))

    def evaluate(self) -> dict | None:
        """{"alignment": {...}} in percent, on the main process: "IoU_top", mean IoU of the top-scored detections;
        "near_best", share of them within 0.05 of the best IoU; both of the objects that have a detection; "found", the
        share of those. nan where there is none."""
        gathered = comm.gather(dict(self._rows))
        if not comm.is_main_process():
            return None
        images = {key: rows for part in gathered for key, rows in part.items()}
        rows = np.concatenate([np.zeros((0, 2)), *images.values()])
        found = rows[~np.isnan(rows[:, 0])]
        top, best = found.T if len(found) else np.full((2, 1), np.nan)
        near = np.where(np.isnan(top), np.nan, top >= best - MARGIN)
        share = len(found) / len(rows) if len(rows) else np.nan
        metrics = {"IoU_top": top.mean(), "near_best": near.mean(), "found": share}
        return {"alignment": {name: 100 * float(value) for name, value in metrics.items()}}


def _objects_of(record: dict) -> tuple[Boxes, np.ndarray]:
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return Boxes(np.array(boxes, dtype=np.float32).reshape(-1, 4)), np.array([a["category_id"] for a in annotations])


def _top_and_best(boxes: Boxes, classes: np.ndarray, found) -> np.ndarray:
    """(M, 2): IoU of the top-scored detection of each object, and the best; nan for objects without one."""
    result = np.full((len(boxes), 2), np.nan)
    if len(boxes) == 0 or len(found) == 0:
        return result
    center = found.pred_boxes.get_centers()
    inside = (center[None] > boxes.tensor[:, None, :2]) & (center[None] < boxes.tensor[:, None, 2:])
    candidate = inside.all(dim=2).numpy() & (classes[:, None] == found.pred_classes.numpy())
    iou = pairwise_iou(boxes, found.pred_boxes).numpy()
    scores = np.where(candidate, found.scores.numpy(), -1)
    rows = np.flatnonzero(candidate.any(axis=1))
    result[rows, 0] = iou[rows, scores[rows].argmax(axis=1)]
    result[rows, 1] = np.where(candidate, iou, -1)[rows].max(axis=1)
    return result
