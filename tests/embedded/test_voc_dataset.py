"""Pascal VOC folders to dataset dicts."""

import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_pascal_voc
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.structures import BoxMode

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/few.txt").write_text("000007\n2008_000001\n")
    size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
    objects = OBJECT.format("dog", 0, 1, 2.5, 30, 20) + OBJECT.format("person", 1, 4, 5, 6, 7)
    for name, content in (("000007", objects), ("2008_000001", "")):
        xml = f"<annotation>{size}{content}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(xml)
    return str(tmp_path)


def test_load(voc):
    a, b = load_voc_instances(voc, "few", CLASS_NAMES)
    assert a["file_name"] == f"{voc}/JPEGImages/000007.jpg"
    assert (a["image_id"], a["height"], a["width"]) == ("000007", 20, 30)
    assert b["image_id"] == "2008_000001" and b["annotations"] == []
    # xmin, ymin minus 1, xmax, ymax as they are; the difficult object is included
    mode = BoxMode.XYXY_ABS
    assert a["annotations"] == [
        {"category_id": 11, "bbox": [0.0, 1.5, 30.0, 20.0], "bbox_mode": mode},
        {"category_id": 14, "bbox": [3.0, 4.0, 6.0, 7.0], "bbox_mode": mode},
    ]


def test_unknown_class(voc):
    with pytest.raises(ValueError, match="dog"):
        load_voc_instances(voc, "few", ["cat", "person"])


def test_register(voc):
    register_pascal_voc("t_voc", voc, "few", 2012)
    register_pascal_voc("t_voc_own_classes", voc, "few", 2007, ("person", "dog"))
    meta = MetadataCatalog.get("t_voc")
    assert meta.thing_classes == list(CLASS_NAMES)
    assert (meta.dirname, meta.year, meta.split) == (voc, 2012, "few")
    assert [a["category_id"] for a in DatasetCatalog.get("t_voc")[0]["annotations"]] == [11, 14]
    assert MetadataCatalog.get("t_voc_own_classes").thing_classes == ["person", "dog"]
    own = DatasetCatalog.get("t_voc_own_classes")[0]["annotations"]
    assert [a["category_id"] for a in own] == [1, 0]
