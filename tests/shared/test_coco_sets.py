"""Own data: what is accepted, and the sentence for what is not."""

import json

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from shared.data.coco_sets import check_coco_set, register_coco_set
from shared.errors import UserError
from tests.scenes import make_coco


@pytest.fixture
def coco(tmp_path):
    file, root = make_coco(tmp_path)
    return file, root, json.loads(file.read_text())


def test_registers_with_sorted_categories(coco):
    file, root, _ = coco
    name = register_coco_set(str(file), str(root))
    assert MetadataCatalog.get(name).thing_classes == ["red", "green", "blue"]  # ids 2, 5, 9
    records = DatasetCatalog.get(name)
    assert len(records) == 4
    assert {a["category_id"] for r in records for a in r["annotations"]} <= {0, 1, 2}
    assert register_coco_set(str(file), str(root)) == name


def test_name_taken_by_other_data(coco, tmp_path):
    file, root, _ = coco
    register_coco_set(str(file), str(root), "taken")
    other, other_root = make_coco(tmp_path / "other")
    with pytest.raises(UserError, match="'taken' is already taken"):
        register_coco_set(str(other), str(other_root), "taken")
    DatasetCatalog.remove("taken")
    MetadataCatalog.remove("taken")


def test_counts_and_slack(coco):
    file, root, data = coco
    data["annotations"][0]["bbox"] = [-0.5, 0, 20, 20]
    data["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(data))
    counts = check_coco_set(str(file), str(root)).counts
    assert (counts["images"], counts["annotations"]) == (4, 8)
    assert (counts["clipped"], counts["crowd"]) == (1, 1)


def drop(key):
    return lambda d: d.pop(key)


def annotation(**fields):
    return lambda d: d["annotations"][3].update(fields)


def image(**fields):
    return lambda d: d["images"][1].update(fields)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (drop("categories"), "no list 'categories'"),
        (drop("images"), "no list 'images'"),
        (drop("annotations"), "no list 'annotations'"),
        (lambda d: d.update(categories=[]), "has no categories"),
        (lambda d: d.update(images=[]), "has no images"),
        (lambda d: d["categories"][1].update(id=5), "category id 5 occurs 2 times"),
        (lambda d: d["categories"][1].update(name=None), "'name' must be str, got None"),
        (lambda d: d["categories"][1].update(id="2"), "'id' must be int, got '2'"),
        (lambda d: d.update(annotations=[3]), "'annotations' holds something but objects"),
        (annotation(category_id=1), "annotation 4 has category 1, which is not listed"),
        (annotation(image_id=77), "annotation 4 belongs to image 77, which is not listed"),
        (annotation(id=1), "annotation id 1 occurs more than once"),
        (annotation(bbox=[1, 1, 0, 5]), r"annotation 4 has a box of zero or negative size"),
        (annotation(bbox=[1, 1, 5, -5]), r"zero or negative size: \[1, 1, 5, -5\]"),
        (annotation(bbox=[60, 1, 30, 5]), r"annotation 4 has a box outside its 64 x 64 image"),
        (annotation(bbox=[-9, 1, 30, 5]), r"annotation 4 has a box outside its 64 x 64 image"),
        (annotation(bbox=[1, 1, float("nan"), 5]), "four finite numbers"),
        (annotation(bbox=[1, 1, 5]), "four finite numbers"),
        (image(file_name="no.png"), "image 2: file .*no.png does not exist"),
        (image(width=0), "image 2 has size 0 x 64"),
        (image(height=None), "image 2: 'height' must be int, got None"),
        (image(id=1), "image id 1 occurs more than once"),
    ],
)
def test_wrong_records_are_named(coco, change, sentence):
    file, root, data = coco
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=sentence) as e:
        register_coco_set(str(file), str(root))
    assert str(file) in str(e.value)
    assert "\n" not in str(e.value)


def test_files_that_are_not_there_or_not_json(coco, tmp_path):
    file, root, _ = coco
    with pytest.raises(UserError, match="no.json does not exist"):
        register_coco_set(str(tmp_path / "no.json"), str(root))
    with pytest.raises(UserError, match="Image folder .*nowhere does not exist"):
        register_coco_set(str(file), str(tmp_path / "nowhere"))
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match="is not valid JSON"):
        register_coco_set(str(file), str(root))
    file.write_text("[]")
    with pytest.raises(UserError, match="not in COCO format"):
        register_coco_set(str(file), str(root))
