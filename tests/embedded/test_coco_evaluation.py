"""COCO evaluation, with averages worked out by hand."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances

MEDIUM, SMALL = [10, 10, 50, 50], [10, 10, 30, 30]  # 1600 and 400 px^2, the limit is 32^2 = 1024
MISS = [60, 60, 90, 90]
IDS = {3: 0, 7: 1}  # category ids of the file: contiguous ones


def annotation(image_id, category_id, box, **kw):
    x0, y0, x1, y1 = box
    bbox, area = [x0, y0, x1 - x0, y1 - y0], (x1 - x0) * (y1 - y0)
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    return {"image_id": image_id, "category_id": category_id, "iscrowd": 0, "bbox": bbox} | {
        "area": area,
        "segmentation": [polygon],
        **kw,
    }


def predicted(*rows, masks=None):
    """rows: (box, score, class); masks: boxes to fill."""
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([[float(v) for v in r[0]] for r in rows]))
    instances.scores = torch.tensor([float(r[1]) for r in rows])
    instances.pred_classes = torch.tensor([r[2] for r in rows], dtype=torch.int64)
    if masks is not None:
        instances.pred_masks = torch.zeros(len(rows), 100, 100, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, masks):
            mask[y0:y1, x0:x1] = True
    return instances


@pytest.fixture
def dataset(tmp_path):
    """Registers a dataset of two images; returns its name."""
    names = []

    def make(annotations, classes=("cat", "dog")):
        content = {
            "info": {},
            "images": [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in (1, 2)],
            "categories": [{"id": k, "name": c} for k, c in zip(IDS, classes)],
        }
        if annotations is not None:
            content["annotations"] = [{"id": i, **a} for i, a in enumerate(annotations, 1)]
        name = f"coco_of_{tmp_path}_{len(names)}"
        path = tmp_path / f"{len(names)}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        ids = dict(list(IDS.items())[: len(classes)])
        MetadataCatalog.get(name).set(thing_classes=list(classes), thing_dataset_id_to_contiguous_id=ids)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(name, outputs, img_ids=None, **kw):
    """outputs: {image id: Instances}"""
    evaluator = COCOEvaluator(name, **kw)
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate(img_ids)


def approx(*metrics, **kw):
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return pytest.approx(dict(zip(names, metrics)) | kw, abs=1e-3, nan_ok=True)


NAN = math.nan
TWO_CATS = [annotation(1, 3, MEDIUM), annotation(2, 3, MEDIUM)]


# -------------------------------------------------------------------------------------- averages
def test_average_precision_by_hand(dataset):
    name = dataset(TWO_CATS, classes=("cat",))
    outputs = {1: predicted((MEDIUM, 0.9, 0), (MISS, 0.8, 0)), 2: predicted((MEDIUM, 0.7, 0))}
    # true, false, true: precision 1 up to recall .5 (51 of the points 0, .01 ... 1), then 2/3;
    # the false one has 900 px^2: it does not count among the medium
    ap = 100 * (51 + 50 * 2 / 3) / 101
    assert evaluate(name, outputs)["bbox"] == approx(ap, ap, ap, NAN, 100, NAN)


@pytest.mark.parametrize(
    "iou, expected", [(0.52, (10, 100, 0)), (0.62, (30, 100, 0)), (0.76, (60, 100, 100)), (0.48, (0, 0, 0))]
)
def test_overlap_thresholds(dataset, iou, expected):
    name = dataset([annotation(1, 3, MEDIUM)], classes=("cat",))
    lower = predicted(([10, 10, 50, 10 + 40 * iou], 0.9, 0))  # of the ten .5, .55 ... .95
    assert evaluate(name, {1: lower})["bbox"] == approx(*expected, NAN, expected[0], NAN)


def test_classes_and_sizes(dataset):
    name = dataset([annotation(1, 3, MEDIUM), annotation(2, 7, SMALL)])
    outputs = {
        1: predicted((MEDIUM, 0.9, 0)),
        2: predicted((MISS, 0.9, 1), (SMALL, 0.8, 1)),  # false, then true: 1/2 at every recall
    }
    per_class = {"AP-cat": 100, "AP-dog": 50}
    found = evaluate(name, outputs)
    assert list(found) == ["bbox"]
    assert found["bbox"] == approx(75, 75, 75, 50, 100, NAN, **per_class)
    # on image 1 alone there is no dog to be found
    per_class = {"AP-cat": 100, "AP-dog": NAN}
    assert evaluate(name, outputs, [1])["bbox"] == approx(100, 100, 100, NAN, 100, NAN, **per_class)


def test_crowd_detections_are_neither_right_nor_wrong(dataset):
    crowd = annotation(1, 3, [60, 60, 100, 100], iscrowd=1)
    crowd["segmentation"] = {"size": [100, 100], "counts": [10000]}
    name = dataset([annotation(1, 3, MEDIUM), crowd], classes=("cat",))
    found = evaluate(name, {1: predicted((MISS, 0.9, 0), (MEDIUM, 0.8, 0))}, tasks=["bbox"])
    assert found["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "max_dets, expected",
    [
        (None, 100 * 2 / 13),  # 11 false, 2 true of 2: at best 2/13
        (13, 100 * 2 / 13),
        (12, 100 * 51 / 12 / 101),  # 1/12 up to recall .5, that is at 51 of 101 points
        (11, 0),
    ],
)
def test_max_dets_per_image(dataset, max_dets, expected, fast):
    corner = [55, 55, 95, 95]
    name = dataset([annotation(1, 3, MEDIUM), annotation(1, 3, corner)], classes=("cat",))
    false = [([0, 60, 40, 100], 0.9, 0)] * 11
    outputs = {1: predicted(*false, (MEDIUM, 0.8, 0), (corner, 0.7, 0))}
    found = evaluate(name, outputs, max_dets_per_image=max_dets, use_fast_impl=fast)
    assert found["bbox"] == approx(*[expected] * 3, NAN, expected, NAN)


# ----------------------------------------------------------------------------------------- masks
def test_mask_sizes_come_from_the_masks(dataset):
    name = dataset([annotation(1, 3, SMALL, bbox=[10, 10, 40, 40])], classes=("cat",))
    instances = predicted((MISS, 0.95, 0), (MEDIUM, 0.9, 0), masks=[[60, 60, 70, 70], SMALL])
    instances.pred_boxes.tensor[0] = torch.tensor([55.0, 55, 95, 95])
    found = evaluate(name, {1: instances})
    assert list(found) == ["bbox", "segm"]
    # the false mask has 100 px^2, its box 1600: small as a mask, ignored among small boxes
    assert found["segm"] == approx(50, 50, 50, 50, NAN, NAN)
    assert found["bbox"] == approx(50, 50, 50, 100, NAN, NAN)
    assert list(evaluate(name, {1: instances}, tasks=("segm",))) == ["segm"]


def test_json_of_instances():
    (result,) = instances_to_coco_json(predicted(([10, 10, 50, 50.5], 0.9, 1), masks=[[20, 5, 30, 8]]), 7)
    mask = mask_util.decode(result.pop("segmentation"))
    assert mask.shape == (100, 100) and mask.sum() == 30 and mask[5:8, 20:30].all()
    assert result.pop("score") == pytest.approx(0.9)
    assert result == {"image_id": 7, "category_id": 1, "bbox": [10, 10, 40, 40.5]}
    assert instances_to_coco_json(predicted(), 7) == []
    with_masks = predicted((MEDIUM, 0.9, 0), masks=[MEDIUM])
    assert isinstance(json.loads(json.dumps(instances_to_coco_json(with_masks, 7))), list)


# ------------------------------------------------------------------------------- files, processes
def test_written_files_have_the_ids_of_the_dataset(dataset, tmp_path):
    name = dataset([annotation(1, 3, MEDIUM)])
    out = tmp_path / "new" / "out"
    evaluate(name, {1: predicted((MEDIUM, 0.9, 1), masks=[SMALL])}, output_dir=str(out))
    (result,) = json.loads((out / "coco_instances_results.json").read_text())
    assert result["category_id"] == 7 and result["bbox"] == [10, 10, 40, 40]
    assert isinstance(result["segmentation"]["counts"], str)
    (saved,) = torch.load(out / "instances_predictions.pth", weights_only=True)
    assert saved["image_id"] == 1 and len(saved["instances"]) == 1


def test_second_evaluation_gives_the_same(dataset):
    name = dataset([annotation(1, 3, MEDIUM), annotation(2, 7, SMALL)])
    evaluator = COCOEvaluator(name)
    evaluator.reset()
    row = predicted((SMALL, 0.9, 1), masks=[SMALL])
    evaluator.process([{"image_id": 2}], [{"instances": row}])
    first = evaluator.evaluate([2])
    assert first["segm"]["AP-dog"] == pytest.approx(100)
    evaluator.reset()
    evaluator.process([{"image_id": 2}], [{"instances": row}])
    assert repr(evaluator.evaluate([2])) == repr(first)


def test_dataset_without_a_json_file(tmp_path):
    dicts = [
        {
            "file_name": "1.png",
            "image_id": 1,
            "height": 100,
            "width": 100,
            "annotations": [{"bbox": MEDIUM, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}],
        }
    ]
    name = f"bare_of_{tmp_path}"
    DatasetCatalog.register(name.replace("/", "_"), lambda: dicts)
    name = name.replace("/", "_")
    MetadataCatalog.get(name).thing_classes = ["cat"]
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(name)
    found = evaluate(name, {1: predicted((MEDIUM, 0.9, 0))}, output_dir=str(tmp_path))
    assert found["bbox"]["AP"] == pytest.approx(100)
    assert (tmp_path / f"{name}_coco_format.json").is_file()
    DatasetCatalog.remove(name)


def test_processes_are_gathered(dataset, monkeypatch):
    name = dataset(TWO_CATS, classes=("cat",))
    other = COCOEvaluator(name)
    other.reset()
    other.process([{"image_id": 2}], [{"instances": predicted((MEDIUM, 0.7, 0))}])
    sent = []
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst=0: sent.append(data) or [])
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert other.evaluate() == {}
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, dst=0: [data, *sent])
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: True)
    mine = {1: predicted((MEDIUM, 0.9, 0))}
    assert evaluate(name, mine)["bbox"]["AP"] == pytest.approx(100)
    alone = evaluate(name, mine, distributed=False)["bbox"]["AP"]  # recall .5
    assert alone == pytest.approx(100 * 51 / 101)


# ------------------------------------------------------------------------------------ odd inputs
def test_nothing_predicted(dataset):
    name = dataset(TWO_CATS, classes=("cat",))
    assert evaluate(name, {}) == {}
    empty = {1: predicted(), 2: predicted()}
    assert evaluate(name, empty) == {"bbox": approx(*[NAN] * 6)}
    both = evaluate(name, empty, tasks=("bbox", "segm"))
    assert both == {"bbox": approx(*[NAN] * 6), "segm": approx(*[NAN] * 6)}


def test_file_without_annotations(dataset, tmp_path):
    name = dataset(None)
    found = evaluate(name, {1: predicted((MEDIUM, 0.9, 0))}, output_dir=str(tmp_path / "o"))
    assert found == {}
    assert (tmp_path / "o" / "coco_instances_results.json").is_file()


def test_class_that_the_dataset_lacks(dataset):
    name = dataset(TWO_CATS)
    with pytest.raises(AssertionError, match="2 classes"):
        evaluate(name, {1: predicted((MEDIUM, 0.9, 2))})


@pytest.mark.embedded_only  # upstream has these two
@pytest.mark.parametrize("task", ["keypoints", "box_proposals"])
def test_task_that_the_engine_lacks(dataset, task):
    with pytest.raises(ValueError, match=task):
        COCOEvaluator(dataset(TWO_CATS), tasks=("bbox", task))


def test_metrics_can_be_extended(dataset):
    class WithRecall(COCOEvaluator):
        def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
            results = super()._derive_coco_results(coco_eval, iou_type, class_names)
            return results | {"AR1": coco_eval.stats[6], "AR100": coco_eval.stats[8]}

    two = [annotation(1, 3, MEDIUM), annotation(1, 3, [55, 55, 95, 95])]
    evaluator = WithRecall(dataset(two, classes=("cat",)), use_fast_impl=False)
    evaluator.reset()
    instances = predicted((MEDIUM, 0.9, 0), ([55, 55, 95, 95], 0.8, 0))
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    found = evaluator.evaluate()["bbox"]
    assert found["AR1"] == pytest.approx(0.5) and found["AR100"] == pytest.approx(1)
    assert np.isclose(found["AP"], 100)
