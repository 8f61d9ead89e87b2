"""COCO files to dataset dicts and back."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json, register_coco_instances
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

TRIANGLE = [1, 2, 4, 2, 4, 6]  # legs 3 and 4: area 6
# a 6 x 5 (h x w) mask, column by column: 8 zeros, 2 ones, 4 zeros, 2 ones, 14 zeros
RLE = {"counts": [8, 2, 4, 2, 14], "size": [6, 5]}


def annotation(id, image_id=9, category_id=7, **kwargs):
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, **kwargs}


@pytest.fixture
def write(tmp_path):
    """Write a COCO file; the ids of images and categories are neither sorted nor contiguous."""

    def write(annotations, name="a"):
        data = {
            "images": [
                {"id": 9, "file_name": "b.jpg", "height": 6, "width": 5},
                {"id": 4, "file_name": "sub/a.jpg", "height": 6, "width": 5},
            ],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        }
        if annotations is not None:
            data["annotations"] = annotations
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        return str(path)

    return write


@pytest.fixture
def name(request):
    return f"t_{request.node.name}"


def test_order_ids_and_metadata(write, name):
    file = write([annotation(1), annotation(2, 4, 3, iscrowd=1), annotation(3, 9, 3, foo=5)])
    a, b = load_coco_json(file, "root", name)
    assert {k: a[k] for k in ("file_name", "height", "width", "image_id")} == {
        "file_name": "root/sub/a.jpg",
        "height": 6,
        "width": 5,
        "image_id": 4,
    }
    assert b["image_id"] == 9
    assert [x["category_id"] for x in b["annotations"]] == [1, 0]  # in the file's order
    assert a["annotations"] == [{"bbox": [1, 2, 3.5, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}]
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["cat", "dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_raw_ids_without_a_name_and_extra_keys(write):
    _, b = load_coco_json(write([annotation(1, foo=5)]), "root", extra_annotation_keys=["foo"])
    assert b["annotations"][0]["category_id"] == 7 and b["annotations"][0]["foo"] == 5


def test_segmentations(write, caplog):
    odd, short = [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4]
    file = write(
        [
            annotation(1, segmentation=[odd, TRIANGLE, short]),
            annotation(2, segmentation=[short]),  # no valid polygon: left out
            annotation(3, segmentation=[]),  # never had one: kept, without the key
            annotation(4, segmentation=RLE),
        ]
    )
    with caplog.at_level("WARNING"):
        annos = load_coco_json(file, "root")[1]["annotations"]
    assert len(annos) == 3 and any("1 instances" in r.message for r in caplog.records)
    assert annos[0]["segmentation"] == [TRIANGLE]
    assert "segmentation" not in annos[1]
    mask = mask_util.decode(annos[2]["segmentation"])  # only compressed RLE can be decoded
    expected = np.zeros((6, 5), np.uint8)
    expected[2:4, 1:3] = 1
    np.testing.assert_array_equal(mask, expected)


def test_file_without_annotations(write, capsys):
    dicts = load_coco_json(write(None), "root")
    assert [d["annotations"] for d in dicts] == [[], []]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "annotations,error,match",
    [
        ([annotation(1), annotation(1)], AssertionError, "not unique"),
        ([annotation(1, ignore=1)], AssertionError, "ignore"),
        ([annotation(1) | {"bbox": []}], ValueError, "empty 'bbox'"),
        ([annotation(1, category_id=99)], KeyError, "category_id=99"),
    ],
)
def test_invalid_files(write, name, annotations, error, match):
    with pytest.raises(error, match=match):
        load_coco_json(write(annotations), "root", name)


def test_minival_may_repeat_annotation_ids(write):
    file = write([annotation(1), annotation(1)], name="instances_minival2014")
    assert len(load_coco_json(file, "root")[1]["annotations"]) == 2


def test_class_names_must_agree_with_the_metadata(write, name):
    MetadataCatalog.get(name).thing_classes = ["zebra", "dog"]
    with pytest.raises(AssertionError, match="thing_classes"):
        load_coco_json(write([]), "root", name)


def test_register(write, name):
    file = write([annotation(1)])
    register_coco_instances(name, {"note": "x"}, file, "root")
    meta = MetadataCatalog.get(name)
    assert (meta.json_file, meta.image_root, meta.evaluator_type, meta.note) == (file, "root", "coco", "x")
    assert meta.get("thing_classes") is None  # nothing is read yet
    assert [d["image_id"] for d in DatasetCatalog.get(name)] == [4, 9]
    assert meta.thing_classes == ["cat", "dog"]
    with pytest.raises(AssertionError):
        register_coco_instances(3, {}, file, "root")


def test_convert_to_coco_dict(write, name):
    register_coco_instances(
        name,
        {},
        write(
            [
                annotation(11, 4, 3, segmentation=RLE, iscrowd=1),
                annotation(12, 4, 7) | {"bbox": [0.12345, 1, 2, 3.5]},
                annotation(13, 9, 7, segmentation=[TRIANGLE]),
            ]
        ),
        "root",
    )
    coco = json.loads(json.dumps(convert_to_coco_dict(name)))
    assert {"info", "licenses"} <= set(coco)
    assert coco["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert coco["images"][0] == {"id": 4, "width": 5, "height": 6, "file_name": "root/sub/a.jpg"}
    rle, box, polygon = coco["annotations"]
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    assert [a["image_id"] for a in coco["annotations"]] == [4, 4, 9]
    assert [a["category_id"] for a in coco["annotations"]] == [3, 7, 7]
    assert [a["iscrowd"] for a in coco["annotations"]] == [1, 0, 0]
    assert isinstance(rle["segmentation"]["counts"], str) and rle["area"] == 4  # 2 x 2 pixels
    assert box["bbox"] == [0.123, 1.0, 2.0, 3.5] and box["area"] == pytest.approx(7)  # 2 * 3.5
    assert "segmentation" not in box
    assert polygon["segmentation"] == [TRIANGLE] and polygon["area"] == 6


def test_convert_without_annotations_ids_or_id_map(name):
    DatasetCatalog.register(name, lambda: [{"file_name": "x", "height": 3, "width": 4}])
    MetadataCatalog.get(name).thing_classes = ["q"]
    coco = convert_to_coco_dict(name)
    assert "annotations" not in coco and coco["categories"] == [{"id": 0, "name": "q"}]
    assert coco["images"] == [{"id": 0, "width": 4, "height": 3, "file_name": "x"}]


def test_convert_xyxy_arrays(name):
    anno = {"bbox": np.array([1.0, 2, 4, 8]), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    DatasetCatalog.register(name, lambda: [{"file_name": "x", "height": 9, "width": 9, "annotations": [anno]}])
    MetadataCatalog.get(name).thing_classes = ["q"]
    (out,) = json.loads(json.dumps(convert_to_coco_dict(name)))["annotations"]
    assert out["bbox"] == [1, 2, 3, 6] and out["area"] == 18


def test_convert_to_json_is_cached(name, tmp_path):
    calls = []
    dicts = [{"file_name": "x", "height": 3, "width": 4}]
    DatasetCatalog.register(name, lambda: calls.append(1) or dicts)
    MetadataCatalog.get(name).thing_classes = ["q"]
    file = tmp_path / "new" / "out.json"
    for expected in (1, 1):
        convert_to_coco_json(name, str(file))
        assert len(calls) == expected
    convert_to_coco_json(name, str(file), allow_cached=False)
    assert len(calls) == 2
    assert json.loads(file.read_text())["images"][0]["file_name"] == "x"
    assert sorted(p.name for p in file.parent.glob("*.json*") if ".lock" not in p.name) == ["out.json"]


def test_round_trip(write, name, tmp_path):
    register_coco_instances(name, {}, write([annotation(1, 4, 3, segmentation=[TRIANGLE]), annotation(2)]), "root")
    before = DatasetCatalog.get(name)
    out = tmp_path / "out.json"
    convert_to_coco_json(name, str(out))
    after = load_coco_json(str(out), "", name)
    assert after == before
