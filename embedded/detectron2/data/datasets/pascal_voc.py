"""Pascal VOC: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/*.jpg."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

_NAMES = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike
person pottedplant sheep sofa train tvmonitor"""
CLASS_NAMES = tuple(_NAMES.split())


def _load_object(element: ET.Element, class_names: Sequence[str], xml_file: str) -> dict:
    name = element.find("name").text
    if name not in class_names:
        raise ValueError(f"{xml_file} has an object {name!r}, not one of {list(class_names)}.")
    box = element.find("bndbox")
    x0, y0, x1, y1 = (float(box.find(tag).text) for tag in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1 and includes the last one: [1, W] is [0, W) here.
    return {"category_id": class_names.index(name), "bbox": [x0 - 1.0, y0 - 1.0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS}


def load_voc_instances(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Dataset dicts of one split, objects marked difficult included."""
    with PathManager.open(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")) as f:
        image_ids = f.read().split()
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    dicts = []
    for image_id in image_ids:
        xml_file = os.path.join(annotation_dir, f"{image_id}.xml")
        with PathManager.open(xml_file) as f:
            root = ET.parse(f).getroot()
        file_name = os.path.join(dirname, "JPEGImages", f"{image_id}.jpg")
        size = {side: int(root.find(f"./size/{side}").text) for side in ("height", "width")}
        annos = [_load_object(e, class_names, xml_file) for e in root.findall("object")]
        dicts.append({"file_name": file_name, "image_id": image_id, **size, "annotations": annos})
    return dicts


def register_pascal_voc(name: str, dirname: str, split: str, year: int, class_names: Sequence[str] = CLASS_NAMES):
    """year: 2007 or 2012; it decides how AP is computed."""
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(thing_classes=list(class_names), dirname=dirname, year=year, split=split)
