"""Steps of dataset mappers: images, sizes, annotations, default augmentations."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image, ImageOps

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog


class SizeMismatchError(ValueError):
    """The image has another size than its dataset dict says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """To (H, W, C) of Pillow mode `format`; "BGR" is a view of RGB, None keeps the mode."""
    mode = "RGB" if format == "BGR" else format
    array = np.asarray(image if mode in (None, image.mode) else image.convert(mode))  # convert() always copies
    if format == "L":
        return array[:, :, None]
    return array[:, :, ::-1] if format == "BGR" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """image: (H, W, C) in `format`, values in [0, 255]. Returns uint8 RGB (H, W, 3)."""
    image = (image.cpu().numpy() if isinstance(image, torch.Tensor) else image).astype(np.uint8)
    if format in ("RGB", "BGR"):
        return image if format == "RGB" else image[:, :, ::-1]
    return np.asarray(Image.fromarray(image[:, :, 0] if format == "L" else image, format).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Upright by EXIF. Returns uint8 (H, W, C), see `convert_PIL_to_numpy`."""
    with PathManager.open(file_name, "rb") as f:
        image = Image.open(f)
        with contextlib.suppress(Exception):  # a corrupt EXIF block raises almost anything; the pixels are still good
            ImageOps.exif_transpose(image, in_place=True)
        return convert_PIL_to_numpy(image, format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare with "width" and "height" of the dict (SizeMismatchError), or fill them in."""
    h, w = image.shape[:2]
    expected = (dataset_dict.setdefault("height", h), dataset_dict.setdefault("width", w))
    if expected != (h, w):
        name = f"Image {dataset_dict.get('file_name', '')}"
        raise SizeMismatchError(f"{name} has (height, width) = {(h, w)}, the dataset says {expected}: correct it.")


def transform_instance_annotations(
    annotation: dict, transforms, image_size: tuple[int, int], *, keypoint_hflip_indices=None
) -> dict:
    """Transform the box and the segmentation of one annotation in place and return it. The box becomes xyxy, clipped to
    `image_size` (h, w) after the transforms. Ints stay ints (transforms write into them): sizes are truncated."""
    if not isinstance(transforms, T.Transform):
        transforms = T.TransformList(transforms)
    h, w = image_size
    bbox = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    bbox = transforms.apply_box(np.array([bbox]))[0].clip(min=0)
    annotation.update(bbox=np.minimum(bbox, [w, h, w, h]), bbox_mode=BoxMode.XYXY_ABS)
    if "segmentation" not in annotation:
        return annotation
    segm = annotation["segmentation"]
    if isinstance(segm, list):
        polygons = [np.asarray(p).reshape(-1, 2) for p in segm]
        segm = [p.reshape(-1) for p in transforms.apply_polygons(polygons)]
    elif isinstance(segm, dict):
        segm = transforms.apply_segmentation(mask_util.decode(segm))
        assert segm.shape[:2] == (h, w), f"The image is {(h, w)}, its mask {segm.shape}."
    else:
        raise ValueError(f"Cannot transform a segmentation of type {type(segm)}: use polygons or an RLE dict.")
    annotation["segmentation"] = segm
    return annotation


def _to_bitmask(segm: Any, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(segm, list):
        return polygons_to_bitmask(segm, *image_size)
    if isinstance(segm, dict):
        return mask_util.decode(segm)
    if not isinstance(segm, np.ndarray):
        raise ValueError(f"A segmentation is a list of polygons, an RLE dict or a (H, W) array, got {type(segm)}.")
    assert segm.ndim == 2, f"A mask is a (H, W) array, got shape {segm.shape}."
    return segm


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """N annotations of one (h, w) image to `gt_boxes`, `gt_classes` (N,) int64 and, if the first one has a
    segmentation, `gt_masks`: PolygonMasks, or BitMasks if `mask_format` is "bitmask"."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    instances = Instances(image_size, gt_boxes=Boxes(np.array(boxes)), gt_classes=classes)
    if not annos or "segmentation" not in annos[0]:
        return instances
    segms = [a["segmentation"] for a in annos]
    assert mask_format in ("polygon", "bitmask"), f"Unknown mask_format {mask_format!r}."
    if mask_format == "bitmask":
        instances.gt_masks = BitMasks(np.stack([_to_bitmask(s, image_size) for s in segms]))
        return instances
    try:
        instances.gt_masks = PolygonMasks(segms)
    except ValueError as e:
        hint = "set INPUT.MASK_FORMAT='bitmask' (instance_mask_format) for RLE and array masks"
        raise ValueError(f"Cannot use the given segmentations as polygons: {hint}.") from e
    return instances


def filter_empty_instances(instances: Instances, by_box=True, by_mask=True, box_threshold=1e-5, return_mask=False):
    """Keep instances whose box is wider and higher than `box_threshold` and whose mask, if any, is not empty. Returns
    them, with `return_mask` also the bool vector of the kept ones."""
    assert by_box or by_mask, "filter_empty_instances needs by_box or by_mask."
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep = keep & instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raises ValueError if the datasets' metadata differ in `key`."""
    values = {name: getattr(MetadataCatalog.get(name), key) for name in dataset_names}
    if any(value != values[dataset_names[0]] for value in values.values()):
        raise ValueError(f"Datasets differ in their metadata {key!r}: {values}.")


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """Resizing, and in training flipping, as INPUT says."""
    size, flip = cfg.INPUT, cfg.INPUT.RANDOM_FLIP
    if not is_train:
        return [T.ResizeShortestEdge(size.MIN_SIZE_TEST, size.MAX_SIZE_TEST, "choice")]
    augs = [T.ResizeShortestEdge(size.MIN_SIZE_TRAIN, size.MAX_SIZE_TRAIN, size.MIN_SIZE_TRAIN_SAMPLING)]
    if flip != "none":
        augs.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augs


build_transform_gen = build_augmentation
