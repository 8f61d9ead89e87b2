"""Catalogs, metadata, and the built-in datasets."""

import importlib
import os
from pathlib import Path

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, register_coco_instances, register_pascal_voc


def test_dataset_is_loaded_at_get_only():
    calls = []
    DatasetCatalog.register("t_catalog_lazy", lambda: calls.append(1) or [{"x": 1}])
    assert "t_catalog_lazy" in DatasetCatalog and "t_catalog_lazy" in DatasetCatalog.list()
    assert calls == []
    assert DatasetCatalog.get("t_catalog_lazy") == [{"x": 1}] and calls == [1]
    DatasetCatalog.remove("t_catalog_lazy")
    assert "t_catalog_lazy" not in DatasetCatalog
    DatasetCatalog.register("t_catalog_lazy", list)  # free again
    DatasetCatalog.pop("t_catalog_lazy")
    with pytest.raises(KeyError, match="t_catalog_lazy.*not registered.*coco_2017_train"):
        DatasetCatalog.get("t_catalog_lazy")


def test_register_refuses_duplicates_and_data():
    with pytest.raises(AssertionError, match="coco_2017_val.*already registered"):
        DatasetCatalog.register("coco_2017_val", list)
    with pytest.raises(AssertionError, match="function"):
        DatasetCatalog.register("t_catalog_list", [{"x": 1}])


def test_metadata_keeps_its_values():
    meta = MetadataCatalog.get("t_catalog_meta")
    assert meta.set(a=1, b=[2]) is meta is MetadataCatalog.get("t_catalog_meta")
    meta.a = 1  # the same value may be set again
    with pytest.raises(AssertionError, match="'a'.*'t_catalog_meta'.*different value"):
        meta.a = 2
    with pytest.raises(AttributeError, match="t_catalog_meta"):
        _ = meta.missing
    assert meta.a == 1 and meta.get("missing") is None and meta.get("missing", 3) == 3
    assert meta.as_dict() == {"name": "t_catalog_meta", "a": 1, "b": [2]}
    assert "t_catalog_meta" in MetadataCatalog.list()
    MetadataCatalog.remove("t_catalog_meta")
    assert MetadataCatalog.get("t_catalog_meta").as_dict() == {"name": "t_catalog_meta"}
    MetadataCatalog.pop("t_catalog_meta")
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


def test_builtin_coco_classes():
    meta = MetadataCatalog.get("coco_2017_train")
    ids = meta.thing_dataset_id_to_contiguous_id
    assert len(meta.thing_classes) == len(set(meta.thing_classes)) == len(ids) == 80
    assert list(ids.values()) == list(range(80)) and list(ids) == sorted(ids)
    # The ids of COCO's 91 that have no instances:
    assert set(range(1, 91)) - set(ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    known = {1: "person", 13: "stop sign", 18: "dog", 44: "bottle", 77: "cell phone"}
    assert {i: meta.thing_classes[ids[i]] for i in known} == known
    assert meta.thing_classes[79] == "toothbrush"
    assert meta.thing_colors[0] == [220, 20, 60] and meta.thing_colors[79] == [191, 162, 208]
    assert meta.evaluator_type == "coco"


@pytest.mark.parametrize(
    "name,images,annotations",
    [
        ("coco_2014_train", "train2014", "instances_train2014"),
        ("coco_2014_val", "val2014", "instances_val2014"),
        ("coco_2014_minival", "val2014", "instances_minival2014"),
        ("coco_2014_valminusminival", "val2014", "instances_valminusminival2014"),
        ("coco_2017_train", "train2017", "instances_train2017"),
        ("coco_2017_val", "val2017", "instances_val2017"),
        ("coco_2017_val_100", "val2017", "instances_val2017_100"),
        ("coco_2017_test", "test2017", "image_info_test2017"),
        ("coco_2017_test-dev", "test2017", "image_info_test-dev2017"),
    ],
)
def test_builtin_coco_paths(name, images, annotations):
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    meta = MetadataCatalog.get(name)
    assert name in DatasetCatalog
    assert Path(meta.image_root) == Path(root, "coco", images)
    assert Path(meta.json_file) == Path(root, "coco/annotations", annotations + ".json")


def test_builtin_voc():
    names = [n for n in DatasetCatalog.list() if n.startswith("voc_")]
    splits = {(MetadataCatalog.get(n).year, MetadataCatalog.get(n).split) for n in names}
    expected = {(y, s) for y in (2007, 2012) for s in ("trainval", "train", "val")}
    assert splits == expected | {(2007, "test")}
    meta = MetadataCatalog.get("voc_2007_test")
    assert meta.evaluator_type == "pascal_voc" and meta.dirname.endswith("VOC2007")
    assert len(meta.thing_classes) == 20 and meta.thing_classes == sorted(meta.thing_classes)
    assert (meta.thing_classes[0], meta.thing_classes[-1]) == ("aeroplane", "tvmonitor")


def test_dataset_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    importlib.reload(builtin)
    assert MetadataCatalog.get("coco_2017_val").image_root == "/home/someone/sets/coco/val2017"
    assert MetadataCatalog.get("voc_2012_val").dirname == "/home/someone/sets/VOC2012"


def test_registering_again():
    for _ in range(2):  # the same facts twice: nothing happens
        register_coco_instances("t_catalog_twice", {"x": 1}, "a.json", "root")
    with pytest.raises(AssertionError, match="'x'"):
        register_coco_instances("t_catalog_twice", {"x": 2}, "a.json", "root")
    register_pascal_voc("t_catalog_voc", "dir", "val", 2007)
    with pytest.raises(AssertionError, match="already registered"):
        register_pascal_voc("t_catalog_voc", "dir", "val", 2007)
