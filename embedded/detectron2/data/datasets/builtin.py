"""COCO and Pascal VOC, expected under $DETECTRON2_DATASETS (default "datasets")."""

import os

from detectron2.data.catalog import MetadataCatalog

from .builtin_meta import get_coco_metadata
from .coco import register_coco_instances
from .pascal_voc import register_pascal_voc

# name -> (image folder, annotation file), relative to <root>/coco and <root>/coco/annotations
_COCO_SPLITS = {
    "coco_2014_train": ("train2014", "instances_train2014.json"),
    "coco_2014_val": ("val2014", "instances_val2014.json"),
    "coco_2014_minival": ("val2014", "instances_minival2014.json"),
    "coco_2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "coco_2017_train": ("train2017", "instances_train2017.json"),
    "coco_2017_val": ("val2017", "instances_val2017.json"),
    "coco_2017_test": ("test2017", "image_info_test2017.json"),
    "coco_2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "coco_2017_val_100": ("val2017", "instances_val2017_100.json"),
}
_VOC_SPLITS = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _name, (_images, _annotations) in _COCO_SPLITS.items():
    _json_file = os.path.join(_root, "coco/annotations", _annotations)
    register_coco_instances(_name, get_coco_metadata(), _json_file, os.path.join(_root, "coco", _images))
for _year, _splits in _VOC_SPLITS.items():
    for _split in _splits:
        register_pascal_voc(f"voc_{_year}_{_split}", os.path.join(_root, f"VOC{_year}"), _split, _year)
        MetadataCatalog.get(f"voc_{_year}_{_split}").evaluator_type = "pascal_voc"
