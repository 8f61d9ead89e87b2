"""Register datasets in COCO's format."""

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog

from .coco import load_coco_json


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Make `name` a dataset that is loaded from `json_file` when it is used.

    A registered name keeps its loader; its metadata must be the same.
    """
    assert isinstance(name, str), f"A dataset's name is a string, got {name!r}."
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
