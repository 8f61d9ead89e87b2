"""Evaluation by several processes whose shares differ: every image once, and the results of one process, to the bit."""

import json
from pathlib import Path

import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from projects.MuSu import AlignmentEvaluator
from shared.classification import ClassificationEvaluator
from shared.data.coco_sets import register_coco_set
from tests.processes import run_forked
from tests.scenes import make_coco

CLASSES, SIZE = 3, 64
NAMES = ("red", "green", "blue")
OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


# ---------------------------------------------------------------- shares
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("processes", range(1, 6))
def test_every_image_is_dealt_out_once(monkeypatch, processes, batch_size):
    for images in (*range(1, 8), 16):
        seen, lengths = [], []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_world_size", lambda: processes)
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            loader = build_detection_test_loader(list(range(images)), mapper=lambda x: x, batch_size=batch_size)
            batches = list(loader)
            assert len(loader) == len(batches)
            seen += [image for batch in batches for image in batch]
            lengths.append(sum(map(len, batches)))
        assert seen == list(range(images)) and max(lengths) - min(lengths) <= 1


# ---------------------------------------------------------------- evaluators
def make_sets(folder: Path, images: int) -> dict[str, str]:
    """The same scenes as a COCO and as two VOC sets, and labels for as many images; names of the sets."""
    json_file, root = make_coco(folder / "coco", images=images)
    coco = register_coco_set(str(json_file), str(root))
    names = {"coco": coco, "voc2007": f"{coco}_2007", "voc2012": f"{coco}_2012", "labels": f"{coco}_labels"}
    for part in ("Annotations", "ImageSets/Main"):
        (folder / "voc" / part).mkdir(parents=True)
    records = DatasetCatalog.get(coco)
    for record in records:
        rows = []
        for a in record["annotations"]:
            x, y, w, h = a["bbox"]
            rows.append(OBJECT.format(NAMES[a["category_id"]], x + 1, y + 1, x + w, y + h))
        text = f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height></size>{''.join(rows)}</annotation>"
        (folder / f"voc/Annotations/{record['image_id']}.xml").write_text(text)
    (folder / "voc/ImageSets/Main/test.txt").write_text("\n".join(str(r["image_id"]) for r in records))
    for year in (2007, 2012):
        register_pascal_voc(names[f"voc{year}"], str(folder / "voc"), "test", year, class_names=NAMES)
    DatasetCatalog.register(names["labels"], lambda: [{"image_id": i, "label": i % 2} for i in range(images)])
    MetadataCatalog.get(names["labels"]).set(thing_classes=list("abcdefg"))
    return names


class Guess:
    """Detections near an image's objects and away from them, and scores of classes: a function of the image."""

    def __init__(self):
        self.seen: list = []

    def __call__(self, batch: list[dict]) -> list[dict]:
        return [self._guess(x) for x in batch]

    def _guess(self, x: dict) -> dict:
        self.seen.append(x["image_id"])
        rng = torch.Generator().manual_seed(int(x["image_id"]))
        if "label" in x:
            return {"scores": torch.rand(7, generator=rng)}
        boxes = torch.tensor([a["bbox"] for a in x["annotations"]], dtype=torch.float32)
        if x["annotations"][0]["bbox_mode"] == 1:  # XYWH
            boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.repeat(3, 1) + 5 * torch.randn(len(boxes) * 3, 4, generator=rng)
        boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
        classes = torch.tensor([a["category_id"] for a in x["annotations"]]).repeat(3)
        wrong = torch.rand(len(classes), generator=rng) < 0.3
        found = Instances((SIZE, SIZE), pred_boxes=Boxes(boxes), scores=torch.rand(len(classes), generator=rng))
        found.pred_classes = torch.where(wrong, (classes + 1) % CLASSES, classes)
        found.pred_masks = _filled(boxes)
        return {"instances": found}


def _filled(boxes: torch.Tensor) -> torch.Tensor:
    """(N, SIZE, SIZE) bool: the pixels of each box."""
    cells = torch.arange(SIZE) + 0.5
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    rows, columns = cells[None, :, None], cells[None, None, :]
    return (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)


def evaluate_all(names: dict[str, str], batch_size: int, folder: Path) -> None:
    """Write {folder}/{rank}.json: the images seen, and the results, by set."""
    makers = {
        "coco": lambda: COCOEvaluator(names["coco"], output_dir=str(folder)),
        "alignment": lambda: AlignmentEvaluator(names["coco"]),
        "voc2007": lambda: PascalVOCDetectionEvaluator(names["voc2007"]),
        "voc2012": lambda: PascalVOCDetectionEvaluator(names["voc2012"]),
        "labels": lambda: ClassificationEvaluator(names["labels"]),
    }
    content = {}
    for key, make in makers.items():
        records, guess = DatasetCatalog.get(names["coco" if key == "alignment" else key]), Guess()
        loader = build_detection_test_loader(records, mapper=lambda x: x, batch_size=batch_size)
        content[key] = {"results": inference_on_dataset(guess, loader, make()), "seen": guess.seen}
    (folder / f"{comm.get_rank()}.json").write_text(json.dumps(content))


def results_of(processes: int, names, batch_size: int, folder: Path) -> tuple[dict, dict]:
    """Results of the main process and, in the order of the ranks, the images seen."""
    target = folder / f"{processes}_of_{batch_size}"
    target.mkdir()
    run_forked(processes, evaluate_all, target, names, batch_size, target)
    parts = [json.loads((target / f"{rank}.json").read_text()) for rank in range(processes)]
    seen = {key: [image for part in parts for image in part[key]["seen"]] for key in parts[0]}
    assert all(not part[key]["results"] for part in parts[1:] for key in part)
    assert len((target / "coco_instances_results.json").read_text()) > 1000
    return {key: value["results"] for key, value in parts[0].items()}, seen


@pytest.mark.parametrize(
    "images, processes, batch_size",
    [
        (5, 2, 2),
        (3, 4, 2),  # a process without an image
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((5, 2, 1), (7, 4, 1), (7, 4, 3), (1, 2, 1), (2, 4, 1))
        ),
    ],
)
def test_results_are_those_of_one_process(tmp_path, images, processes, batch_size):
    names = make_sets(tmp_path, images)
    (one, seen), (several, dealt) = (results_of(n, names, batch_size, tmp_path) for n in (1, processes))
    assert dealt == seen and all(len(x) == images for x in seen.values())
    # as text: AP of a class without an object is nan, which equals nothing
    assert json.dumps(several, sort_keys=True) == json.dumps(one, sort_keys=True)
    assert set(one["coco"]) == {"bbox", "segm"} and 0 < one["coco"]["bbox"]["AP50"] < 100
    assert 0 < one["voc2007"]["bbox"]["AP50"] < 100 and 0 < one["alignment"]["alignment"]["IoU_top"] < 100
    assert "top1" in one["labels"]["classification"]
