"""Datasets in COCO's and Pascal VOC's formats; importing it registers the built-in ones."""

from . import builtin
from .coco import convert_to_coco_json, load_coco_json, register_coco_instances
from .pascal_voc import load_voc_instances, register_pascal_voc
