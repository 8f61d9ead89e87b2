"""COCO's JSON format, from and to dataset dicts."""

import datetime
import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)


def _load_annotation(anno: dict, keys: Sequence[str], id_map: dict[int, int] | None) -> dict | None:
    """None if the annotation has polygons, but no valid one. Raises if it is not COCO's format."""
    name = f"Annotation {anno['id']} of image {anno['image_id']}"
    assert anno.get("ignore", 0) == 0, f"{name} has 'ignore' set: use 'iscrowd'."
    if len(anno.get("bbox", (0,))) == 0:
        raise ValueError(f"{name} has an empty 'bbox': not valid COCO format.")
    obj = {key: anno[key] for key in keys if key in anno} | {"bbox_mode": BoxMode.XYWH_ABS}
    segm = anno.get("segmentation")
    if isinstance(segm, dict):
        uncompressed = isinstance(segm["counts"], list)
        obj["segmentation"] = mask_util.frPyObjects(segm, *segm["size"]) if uncompressed else segm
    elif segm:
        obj["segmentation"] = [p for p in segm if len(p) % 2 == 0 and len(p) >= 6]
        if not obj["segmentation"]:
            return None
    if id_map is not None:
        if obj["category_id"] not in id_map:
            raise KeyError(f"{name} has category_id={obj['category_id']}, which is not in 'categories'.")
        obj["category_id"] = id_map[obj["category_id"]]
    return obj


def load_coco_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys: Sequence[str] | None = None
) -> list[dict]:
    """Dataset dicts of a COCO instances file, by rising image id.
    dataset_name: its metadata get `thing_classes` and `thing_dataset_id_to_contiguous_id`, and category ids become
    0..K-1 in the order of the file's ids; without it they stay. extra_annotation_keys: kept beside the usual ones."""
    with PathManager.open(PathManager.get_local_path(json_file)) as f:
        data = json.load(f)
    id_map = None
    if dataset_name is not None:
        categories = sorted(data["categories"], key=lambda c: c["id"])
        id_map = {c["id"]: i for i, c in enumerate(categories)}
        meta = MetadataCatalog.get(dataset_name)
        meta.set(thing_classes=[c["name"] for c in categories], thing_dataset_id_to_contiguous_id=id_map)
    annos = data.get("annotations", [])
    unique = len({a["id"] for a in annos}) == len(annos) or "minival" in str(json_file)  # COCO's minival repeats ids
    assert unique, f"Annotation ids in {json_file} are not unique."
    annos_of = defaultdict(list)
    for anno in annos:
        annos_of[anno["image_id"]].append(anno)
    keys = ["iscrowd", "bbox", "category_id", *(extra_annotation_keys or [])]
    dicts, skipped = [], 0
    for image in sorted(data["images"], key=lambda i: i["id"]):
        loaded = [_load_annotation(a, keys, id_map) for a in annos_of[image["id"]]]
        objs = [o for o in loaded if o is not None]
        skipped += len(loaded) - len(objs)
        facts = {"height": image["height"], "width": image["width"], "image_id": image["id"]}
        dicts.append({"file_name": os.path.join(image_root, image["file_name"]), **facts, "annotations": objs})
    logger.info(f"Loaded {len(dicts)} images in COCO format from {json_file}")
    if skipped:
        logger.warning(f"Left out {skipped} instances of {json_file} without a valid polygon.")
    return dicts


def _area(segm: list | dict | None, bbox_xyxy: list) -> float:
    if isinstance(segm, dict):
        return float(mask_util.area(segm))
    return (PolygonMasks([segm]) if segm else Boxes([bbox_xyxy])).area()[0].item()


def _to_coco_annotation(anno: dict, image_id: Any, anno_id: int, category_id: int) -> dict:
    box, mode, segm = [float(x) for x in anno["bbox"]], anno["bbox_mode"], anno.get("segmentation")
    out = {
        "id": anno_id,
        "image_id": image_id,
        "bbox": [round(x, 3) for x in BoxMode.convert(box, mode, BoxMode.XYWH_ABS)],
        "area": _area(segm, BoxMode.convert(box, mode, BoxMode.XYXY_ABS)),
        "iscrowd": int(anno.get("iscrowd", 0)),
        "category_id": category_id,
    }
    if isinstance(segm, dict) and isinstance(segm["counts"], bytes):  # bytes are not JSON
        segm = {**segm, "counts": segm["counts"].decode("ascii")}
    return {**out, "segmentation": segm} if segm else out


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """The registered dataset as the content of a COCO instances file. Category ids are the original ones where the
    metadata know them. Without any annotation there is no "annotations"."""
    dicts = DatasetCatalog.get(dataset_name)  # first: loading may set the metadata
    metadata = MetadataCatalog.get(dataset_name)
    id_map = metadata.get("thing_dataset_id_to_contiguous_id", {})
    original_id = {contiguous: original for original, contiguous in id_map.items()}
    images, annotations = [], []
    for i, d in enumerate(dicts):
        image_id = d.get("image_id", i)
        size = {"width": int(d["width"]), "height": int(d["height"])}
        images.append({"id": image_id, **size, "file_name": str(d["file_name"])})
        for anno in d.get("annotations", []):
            category = original_id[anno["category_id"]] if original_id else anno["category_id"]
            annotations.append(_to_coco_annotation(anno, image_id, len(annotations) + 1, category))
    coco = {
        "info": {"date_created": str(datetime.datetime.now()), "description": dataset_name},
        "images": images,
        "categories": [{"id": original_id.get(i, i), "name": c} for i, c in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    logger.info(f"Converted {len(images)} images, {len(annotations)} annotations to COCO format")
    return {**coco, "annotations": annotations} if annotations else coco


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write `convert_to_coco_dict`; with `allow_cached` an existing file stays as it is."""
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning(f"Using {output_file}: remove it if dataset {dataset_name!r} changed.")
            return
        with PathManager.open(output_file + ".tmp", "w") as f:
            json.dump(convert_to_coco_dict(dataset_name), f)
        shutil.move(output_file + ".tmp", output_file)


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Make `name` a dataset that is loaded from `json_file` when it is used.
    A registered name keeps its loader; its metadata must be the same."""
    assert isinstance(name, str), f"A dataset's name is a string, got {name!r}."
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
