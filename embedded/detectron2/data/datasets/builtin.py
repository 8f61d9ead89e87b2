"""COCO and Pascal VOC, expected under $DETECTRON2_DATASETS (default "datasets")."""

import os

from detectron2.data.catalog import MetadataCatalog

from .builtin_meta import get_coco_metadata
from .pascal_voc import register_pascal_voc
from .register_coco import register_coco_instances

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


def _register_all(root: str) -> None:
    for name, (images, annotations) in _COCO_SPLITS.items():
        json_file = os.path.join(root, "coco/annotations", annotations)
        register_coco_instances(name, get_coco_metadata(), json_file, os.path.join(root, "coco", images))
    for year, splits in _VOC_SPLITS.items():
        for split in splits:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


_register_all(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
