"""Own data in COCO's format: checked, then registered with Detectron2's catalogs."""

import json
import math
import os
import zlib
from collections import Counter
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from shared.errors import UserError

EDGE_SLACK = 1.0  # pixels by which a box may stick out of its image: rounding in annotation tools


def register_coco_set(json_file: str, image_root: str, name: str | None = None) -> str:
    """Check `json_file` (COCO format), register it and return the data set's name.

    Category ids may be any distinct integers; Detectron2 maps them, sorted, to 0..K-1.

    Args:
        name: default "<file stem>_<folder hash>", so that the same file has the same name in
            every process. A name that is registered already is left as it is.
    """
    json_file, image_root = os.path.abspath(json_file), os.path.abspath(image_root)
    if name is None:
        name = f"{Path(json_file).stem}_{_hash(json_file + '|' + image_root)}"
    if name in DatasetCatalog.list():
        meta = MetadataCatalog.get(name)
        if (meta.json_file, meta.image_root) != (json_file, image_root):
            raise UserError(f"Data set name {name!r} is already taken by {meta.json_file}.")
        return name
    names = category_names(json_file)
    check_coco_set(json_file, image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type="coco", thing_classes=names
    )
    return name


def _hash(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def read_coco_json(json_file: str) -> dict:
    """The parsed file with its three lists; UserError where it is missing, broken or incomplete."""
    if not os.path.isfile(json_file):
        raise UserError(f"Annotation file {json_file} does not exist.")
    try:
        with open(json_file, encoding="utf-8") as f:
            coco = json.load(f)
    except (ValueError, UnicodeDecodeError) as e:
        raise UserError(f"Annotation file {json_file} is not valid JSON: {e}.") from e
    if not isinstance(coco, dict):
        raise UserError(f"Annotation file {json_file} is not in COCO format: no object at its top.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            raise UserError(f"Annotation file {json_file} is not in COCO format: no list {key!r}.")
        if not all(isinstance(row, dict) for row in coco[key]):
            raise UserError(f"Annotation file {json_file}: {key!r} holds something but objects.")
    return coco


def category_names(json_file: str) -> list[str]:
    """Names by rising category id, as Detectron2 maps them to 0..K-1."""
    categories = read_coco_json(json_file)["categories"]
    if not categories:
        raise UserError(f"Annotation file {json_file} has no categories: 'categories' is empty.")
    ids = [_field(c, "id", int, f"{json_file}: a category") for c in categories]
    _unique(ids, f"{json_file}: category id")
    names = {i: _field(c, "name", str, f"{json_file}: category {i}") for i, c in zip(ids, categories)}
    return [names[i] for i in sorted(ids)]


def check_coco_set(json_file: str, image_root: str) -> Counter:
    """Check every record; returns counts of images, annotations, crowd and clipped boxes.

    Raises:
        UserError: naming the file and the first record that is wrong: an unknown image or category
            id, a repeated id, a box of zero size or outside its image, a missing image file.
    """
    coco = read_coco_json(json_file)
    categories = {c["id"] for c in coco["categories"]}
    if not os.path.isdir(image_root):
        raise UserError(f"Image folder {image_root} does not exist.")
    if not coco["images"]:
        raise UserError(f"Annotation file {json_file} has no images: 'images' is empty.")
    images = {}
    for row in coco["images"]:
        where = f"{json_file}: image {row.get('id')!r}"
        size = [_field(row, key, int, where) for key in ("width", "height")]
        if min(size) <= 0:
            raise UserError(f"{where} has size {size[0]} x {size[1]}.")
        file = os.path.join(image_root, _field(row, "file_name", str, where))
        if not os.path.isfile(file):
            raise UserError(f"{where}: file {file} does not exist; check the image folder.")
        images[_field(row, "id", int, where)] = size
    _unique([row["id"] for row in coco["images"]], f"{json_file}: image id")
    _unique(
        [_field(a, "id", int, f"{json_file}: an annotation") for a in coco["annotations"]],
        f"{json_file}: annotation id",
    )
    counts = Counter(images=len(images), annotations=len(coco["annotations"]))
    for row in coco["annotations"]:
        where = f"{json_file}: annotation {row['id']}"
        if row.get("image_id") not in images:
            raise UserError(f"{where} belongs to image {row.get('image_id')!r}, which is not listed.")
        if row.get("category_id") not in categories:
            raise UserError(f"{where} has category {row.get('category_id')!r}, which is not listed.")
        counts["crowd"] += bool(row.get("iscrowd"))
        counts["clipped"] += _check_box(row.get("bbox"), *images[row["image_id"]], where)
    return counts


def require_masks(json_file: str) -> None:
    """UserError where an object (crowds apart) has no segmentation, which training masks needs."""
    for row in read_coco_json(json_file)["annotations"]:
        if not row.get("segmentation") and not row.get("iscrowd"):
            raise UserError(
                f"{json_file}: annotation {row.get('id')} has no segmentation, but this config trains masks: "
                f"choose a config without masks, such as configs/quickstart.py, or add them."
            )


def _check_box(box, width: int, height: int, where: str) -> bool:
    """Whether an XYWH box sticks out of its image a little; UserError where it is of no use."""
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
        raise UserError(f"{where} needs a bbox of four finite numbers [x, y, width, height], got {box}.")
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise UserError(f"{where} has a box of zero or negative size: {box}; remove or correct it.")
    if x < -EDGE_SLACK or y < -EDGE_SLACK or x + w > width + EDGE_SLACK or y + h > height + EDGE_SLACK:
        raise UserError(f"{where} has a box outside its {width} x {height} image: {box} (x, y, width, height).")
    return x < 0 or y < 0 or x + w > width or y + h > height


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _field(row: dict, key: str, kind: type, where: str):
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {key!r} must be {kind.__name__}, got {value!r}.")
    return value


def _unique(values: list, what: str) -> None:
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise UserError(f"{what} {value} occurs {count} times.")
