"""projects/MuSu/alignment.py: IoU of the top-scored detection of each object."""

import math

import pytest
import torch

from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from projects.MuSu import AlignmentEvaluator


def detections(rows):
    """rows: (box, score, class)."""
    boxes = Boxes(torch.tensor([r[0] for r in rows], dtype=torch.float32).reshape(-1, 4))
    scores, classes = torch.tensor([r[1] for r in rows]), torch.tensor([r[2] for r in rows], dtype=torch.int64)
    return {"instances": Instances((100, 100), pred_boxes=boxes, scores=scores, pred_classes=classes)}


@pytest.fixture
def evaluator():
    def annotation(box, label, crowd=0):
        return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": crowd}

    records = [
        {"image_id": 7, "annotations": [annotation([0, 0, 10, 10], 0), annotation([50, 50, 20, 20], 1)]},
        {"image_id": 8, "annotations": [annotation([0, 0, 10, 10], 2), annotation([0, 0, 90, 90], 2, crowd=1)]},
        {"image_id": 9, "annotations": []},
    ]
    DatasetCatalog.register("alignment_test", lambda: records)
    yield AlignmentEvaluator("alignment_test")
    DatasetCatalog.remove("alignment_test")


FIRST = detections(
    [
        ([0, 0, 10, 5], 0.9, 0),  # of the first object: IoU 50 / 100
        ([0, 0, 10, 9], 0.8, 0),  # the best, 0.9, has the second score
        ([0, 0, 10, 10], 0.99, 1),  # another class
        ([50, 50, 70, 69.5], 0.3, 1),  # of the second object: 19.5 / 20
        ([50, 50, 70, 70], 0.2, 1),
        ([68, 68, 88, 88], 0.95, 1),  # its centre (78, 78) lies outside
    ]
)


def test_by_hand(evaluator):
    """Top IoUs .5 and .975 of two objects, the third has no detection: mean 73.75, one of two near the best."""
    evaluator.process([{"image_id": 7}, {"image_id": 8}], [FIRST, detections([([0, 0, 10, 10], 0.9, 1)])])
    evaluator.process([{"image_id": 9}], [detections([])])
    found = evaluator.evaluate()["alignment"]
    assert found == pytest.approx({"IoU_top": 73.75, "near_best": 50, "found": 200 / 3}, abs=1e-4)
    evaluator.process([{"image_id": 7}], [FIRST])  # dealt out twice: counted once
    assert evaluator.evaluate()["alignment"] == found
    evaluator.reset()
    evaluator.process([{"image_id": 8}], [detections([([0, 0, 10, 10], 0.9, 2)])])
    assert evaluator.evaluate()["alignment"] == pytest.approx({"IoU_top": 100, "near_best": 100, "found": 100})


@pytest.mark.filterwarnings("error")
def test_nothing_found(evaluator):
    evaluator.process([{"image_id": 7}], [detections([])])
    found = evaluator.evaluate()["alignment"]
    assert found["found"] == 0 and math.isnan(found["IoU_top"]) and math.isnan(found["near_best"])
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["alignment"]["found"])  # no object at all
