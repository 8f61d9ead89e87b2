"""PASCAL VOC evaluation, with averages worked out by hand."""

import math

import numpy as np
import pytest
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_ap
from detectron2.structures import Boxes, Instances

OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>1</truncated><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)
GT = (1, 1, 10, 10)  # VOC: 10 x 10 pixels
HIT, MISS = (0, 0, 10, 10), (50, 50, 60, 60)  # ours: the same 10 x 10 pixels, and others


@pytest.fixture
def evaluate(tmp_path):
    """Writes a dataset, processes detections, returns the metrics of "bbox"."""

    def run(objects, detections, year=2012, classes=("cat",)):
        """objects: {image: (class, difficult, box)s}; detections: {image: (box, score, class)s}"""
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for folder in ("Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for image, rows in objects.items():
            text = "".join(OBJECT.format(name, hard, *box) for name, hard, box in rows)
            (root / f"Annotations/{image}.xml").write_text(f"<annotation>{text}</annotation>")
        (root / "ImageSets/Main/test.txt").write_text("\n".join(objects) + "\n")
        meta = MetadataCatalog.get(f"voc_of_{root}")
        meta.set(dirname=str(root), split="test", year=year, thing_classes=list(classes))
        evaluator = PascalVOCDetectionEvaluator(meta.name)
        evaluator.reset()
        for image, rows in detections.items():
            instances = Instances((100, 100))
            instances.pred_boxes = Boxes(torch.tensor([r[0] for r in rows]).reshape(-1, 4))
            instances.scores = torch.tensor([float(r[1]) for r in rows])
            instances.pred_classes = torch.tensor([r[2] for r in rows], dtype=torch.int64)
            evaluator.process([{"image_id": image}], [{"instances": instances}])
        run.evaluator, run.root = evaluator, root
        return evaluator.evaluate()["bbox"]

    return run


def approx(ap, ap50, ap75):
    return pytest.approx({"AP": ap, "AP50": ap50, "AP75": ap75}, nan_ok=True)


# ------------------------------------------------------------------------------- average precision
def test_voc_ap_by_hand():
    rec, prec = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    # envelope: 1 up to recall 0.5, 2/3 up to 1
    assert voc_ap(rec, prec) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # recalls 0, .1 ... .5 are 6 points at 1; .6 ... 1 are 5 points at 2/3
    assert voc_ap(rec, prec, use_07_metric=True) == pytest.approx((6 + 5 * 2 / 3) / 11)


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_voc_ap_without_detections(use_07_metric):
    assert voc_ap(np.array([]), np.array([]), use_07_metric) == 0


def test_eleven_points_are_arange():
    # 3 * 0.1 is 0.30000000000000004 > 0.3: a recall of 0.3 reaches the points 0, .1, .2 only
    rec = np.array([0.1, 0.2, 0.3])
    assert voc_ap(rec, np.ones(3), use_07_metric=True) == pytest.approx(3 / 11)


@pytest.mark.parametrize("year, expected", [(2007, (6 + 5 * 2 / 3) / 11), (2012, 0.5 + 0.5 * 2 / 3)])
def test_year_decides_the_average(evaluate, year, expected):
    objects = {"a": [("cat", 0, GT)], "b": [("cat", 0, GT)]}
    detections = {"a": [(HIT, 0.9, 0), (MISS, 0.8, 0)], "b": [(HIT, 0.7, 0)]}
    ap = 100 * expected
    assert evaluate(objects, detections, year) == approx(ap, ap, ap)


def test_year_unknown(evaluate):
    with pytest.raises((AssertionError, ValueError), match="2010"):
        evaluate({"a": []}, {}, year=2010)


# ------------------------------------------------------------------------------------ conventions
def test_min_corner_moves_by_one(evaluate):
    # without + 1: (0, 0, 10, 10) has 11 x 11 pixels, IoU 100 / 121, and thresholds above .8 fail
    assert evaluate({"a": [("cat", 0, GT)]}, {"a": [(HIT, 0.9, 0)]}) == approx(100, 100, 100)


def test_areas_include_the_end_pixels(evaluate):
    # VOC box (1, 1, 10, 5.2): 5.2 of 10 rows, IoU .52; without the end pixels 4.2 / 9 = .47
    found = evaluate({"a": [("cat", 0, GT)]}, {"a": [((0, 0, 10, 5.2), 0.9, 0)]})
    assert found == approx(10, 100, 0)  # one threshold of ten


def test_overlap_must_exceed_the_threshold(evaluate):
    found = evaluate({"a": [("cat", 0, GT)]}, {"a": [((0, 0, 10, 7.5), 0.9, 0)]})  # IoU .75
    assert found == approx(50, 100, 0)  # 50 ... 70


def test_coordinates_are_rounded(evaluate):
    # 5.04 -> 5.0: IoU .500, not above .5; 5.06 -> 5.1 is
    for y1, expected in ((5.04, 0), (5.06, 100)):
        found = evaluate({"a": [("cat", 0, GT)]}, {"a": [((0, 0, 10, y1), 0.9, 0)]})
        assert found["AP50"] == expected


def test_scores_are_rounded(evaluate):
    # both become .900 and stay in the order given: precision 0, then 1/2
    found = evaluate({"a": [("cat", 0, GT)]}, {"a": [(MISS, 0.9001, 0), (HIT, 0.9004, 0)]})
    assert found["AP50"] == pytest.approx(50)
    found = evaluate({"a": [("cat", 0, GT)]}, {"a": [(MISS, 0.9001, 0), (HIT, 0.9014, 0)]})
    assert found["AP50"] == pytest.approx(100)


def test_equal_scores_are_ordered_as_upstream(evaluate):
    """Its sort is NumPy's default, not the stable one, which would give 24.76 here."""
    rng = np.random.RandomState(0)
    hit, scores = rng.rand(400) < 0.4, np.round(rng.rand(400), 1)
    rows = [(HIT if h else MISS, s, 0) for h, s in zip(hit, scores)]
    found = evaluate(
        {f"i{k}": [("cat", 0, GT)] for k in range(200)}, {f"i{k}": rows[2 * k : 2 * k + 2] for k in range(200)}
    )
    names = [f"i{k}" for k in range(200) for _ in range(2)]
    order = np.argsort([-float(f"{s:.3f}") for s in scores])
    seen, tp = set(), []
    for k in order:
        tp.append(hit[k] and names[k] not in seen)
        seen.update([names[k]] if hit[k] else [])
    tps = np.cumsum(tp)
    assert found["AP50"] == pytest.approx(100 * voc_ap(tps / 200, tps / np.arange(1, 401)))


def test_second_detection_of_an_object_is_false(evaluate):
    objects = {"a": [("cat", 0, GT), ("cat", 0, (31, 31, 40, 40))]}
    detections = {"a": [(HIT, 0.9, 0), (HIT, 0.8, 0), ((30, 30, 40, 40), 0.7, 0)]}
    ap = 100 * (0.5 + 0.5 * 2 / 3)  # true, false, true: precision 1, 1/2, 2/3 of 2 objects
    assert evaluate(objects, detections) == approx(ap, ap, ap)


def test_difficult_objects_count_neither_way(evaluate):
    objects = {"a": [("cat", 1, GT), ("cat", 0, (31, 31, 40, 40))]}
    # two on the difficult one, before the true one: as a false positive each would halve the AP
    detections = {"a": [(HIT, 0.9, 0), (HIT, 0.8, 0), ((30, 30, 40, 40), 0.7, 0)]}
    assert evaluate(objects, detections) == approx(100, 100, 100)
    # not found: recall is of the one easy object
    assert evaluate(objects, {"a": detections["a"][2:]}) == approx(100, 100, 100)


def test_objects_of_other_classes_and_images_do_not_count(evaluate):
    objects = {"a": [("dog", 0, GT)], "b": [("cat", 0, GT)]}
    detections = {"a": [(HIT, 0.9, 0)], "b": [(HIT, 0.8, 0)]}
    found = evaluate(objects, detections, classes=("cat", "dog"))
    assert found == approx(25, 25, 25)  # cat: false, true: 1/2; dog: nothing found; the mean


# ------------------------------------------------------------------------------------ empty cases
def test_class_without_detections_has_zero(evaluate):
    objects = {"a": [("cat", 0, GT), ("dog", 0, GT)]}
    found = evaluate(objects, {"a": [(HIT, 0.9, 0)]}, classes=("cat", "dog"))
    assert found == approx(50, 50, 50)
    assert evaluate(objects, {"a": []}, classes=("cat", "dog")) == approx(0, 0, 0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("year, detected", [(2007, 50), (2012, math.nan)])
def test_class_without_objects(evaluate, year, detected):
    """As upstream: 0 without detections; with some, recall is 0/0, which the area passes on."""
    objects = {"a": [("cat", 0, GT)]}
    # cat: 11 points at precision 1, or area 1
    found = evaluate(objects, {"a": [(HIT, 0.9, 0)]}, year, classes=("cat", "dog"))
    assert found == approx(50, 50, 50)
    found = evaluate(objects, {"a": [(HIT, 0.9, 0), (HIT, 0.8, 1)]}, year, classes=("cat", "dog"))
    assert found == approx(detected, detected, detected)


# ------------------------------------------------------------------------------ files, processes
def test_files_are_parsed_once(evaluate):
    before = evaluate({"a": [("cat", 0, GT)]}, {"a": [(HIT, 0.9, 0)]})
    (evaluate.root / "Annotations/a.xml").unlink()
    assert evaluate.evaluator.evaluate()["bbox"] == before


def test_parse_rec(tmp_path):
    path = tmp_path / "x.xml"
    path.write_text(f"<annotation>{OBJECT.format('cat', 1, 3, 4, 50, 60)}</annotation>")
    (found,) = parse_rec(str(path))
    assert (found["name"], found["difficult"], found["bbox"]) == ("cat", 1, [3, 4, 50, 60])
    assert all(isinstance(v, int) for v in found["bbox"])


@pytest.mark.embedded_only  # upstream raises
def test_parse_rec_without_pose_and_truncated(tmp_path):
    path = tmp_path / "x.xml"
    text = OBJECT.format("cat", 1, 3, 4, 50, 60)
    for part in ("<pose>Left</pose>", "<truncated>1</truncated>"):
        text = text.replace(part, "")
    path.write_text(f"<annotation>{text}</annotation>")
    (found,) = parse_rec(str(path))
    assert found["difficult"] == 1 and found["bbox"] == [3, 4, 50, 60]


def test_processes_are_gathered(evaluate, monkeypatch):
    evaluate({"a": [("cat", 0, GT), ("cat", 0, (31, 31, 40, 40))]}, {"a": [(HIT, 0.9, 0)]})
    first = evaluate.evaluator
    assert first.evaluate()["bbox"]["AP50"] == pytest.approx(50)
    second = PascalVOCDetectionEvaluator(f"voc_of_{evaluate.root}")
    second.reset()
    instances = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[30.0, 30, 40, 40]])))
    instances.scores, instances.pred_classes = torch.tensor([0.8]), torch.tensor([0])
    second.process([{"image_id": "a"}], [{"instances": instances}])

    sent = []
    gather = "detectron2.utils.comm.gather"
    main = "detectron2.utils.comm.is_main_process"
    monkeypatch.setattr(gather, lambda data, dst=0: sent.append(data) or [])
    monkeypatch.setattr(main, lambda: False)
    assert second.evaluate() is None
    monkeypatch.setattr(gather, lambda data, dst=0: [data, *sent])
    monkeypatch.setattr(main, lambda: True)
    assert first.evaluate()["bbox"]["AP50"] == pytest.approx(100)
