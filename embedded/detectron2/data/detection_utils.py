"""Steps of dataset mappers: images, sizes, annotations, default augmentations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from PIL import Image

from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.file_io import PathManager

from . import transforms as T
from .catalog import MetadataCatalog

_EXIF_ORIENTATION = 274  # the tag; how to undo its values 2 to 8:
_UNDO = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {i: Image.Transpose[name] for i, name in enumerate(_UNDO.split(), start=2)}
_SEGM = "a list of polygons (flat lists or arrays), or COCO's RLE dict"


class SizeMismatchError(ValueError):
    """The image has another size than its dataset dict says."""


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # a corrupt EXIF block raises almost anything; the pixels are still good
        return image
    return image if method is None else image.transpose(method)


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """To (H, W, C) of Pillow mode `format`; "BGR" is a view of RGB, None keeps the mode."""
    mode = "RGB" if format == "BGR" else format
    if mode not in (None, image.mode):  # convert() to the same mode would copy
        image = image.convert(mode)
    array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    return array[:, :, ::-1] if format == "BGR" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """image: (H, W, C) in `format`, values in [0, 255]. Returns uint8 RGB (H, W, 3)."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    image = image.astype(np.uint8)
    if format == "BGR":
        return image[:, :, ::-1]
    if format == "L":
        return image[:, :, :1].repeat(3, axis=2)
    return image if format == "RGB" else np.asarray(Image.fromarray(image, format).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Upright by EXIF. Returns uint8 (H, W, C), see `convert_PIL_to_numpy`."""
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare with "width" and "height" of the dict (SizeMismatchError), or fill them in."""
    h, w = image.shape[:2]
    expected = (dataset_dict.setdefault("height", h), dataset_dict.setdefault("width", w))
    if expected != (h, w):
        name = dataset_dict.get("file_name", "")
        raise SizeMismatchError(
            f"Image {name} has (height, width) = {(h, w)}, but the dataset says {expected}: correct its annotations."
        )


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices=None,
) -> dict:
    """Transform the box and the segmentation of one annotation in place, and return it.

    The box becomes xyxy in pixels, clipped to `image_size` (h, w) after the transforms. A box or
    polygon of ints stays of ints, as transforms write into it: sizes are truncated.
    """
    if not isinstance(transforms, T.Transform):
        transforms = T.TransformList(transforms)
    h, w = image_size
    bbox = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    bbox = transforms.apply_box(np.array([bbox]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(bbox, [w, h, w, h])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
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
        raise ValueError(f"Cannot transform a segmentation of type {type(segm)}: use {_SEGM}.")
    annotation["segmentation"] = segm
    return annotation


def _to_bitmask(segm: Any, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(segm, list):
        return polygons_to_bitmask(segm, *image_size)
    if isinstance(segm, dict):
        return mask_util.decode(segm)
    if isinstance(segm, np.ndarray):
        assert segm.ndim == 2, f"A mask is a (H, W) array, got shape {segm.shape}."
        return segm
    raise ValueError(f"Cannot convert a segmentation of type {type(segm)} to BitMasks: use {_SEGM}, or an array.")


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """N annotations of one (h, w) image to `gt_boxes`, `gt_classes` (N,) int64 and, if the first
    one has a segmentation, `gt_masks`: PolygonMasks, or BitMasks if `mask_format` is "bitmask".
    """
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    instances.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    if not annos or "segmentation" not in annos[0]:
        return instances
    segms = [a["segmentation"] for a in annos]
    assert mask_format in ("polygon", "bitmask"), f"Unknown mask_format {mask_format!r}."
    if mask_format == "bitmask":
        masks = np.stack([_to_bitmask(s, image_size) for s in segms])
        instances.gt_masks = BitMasks(torch.from_numpy(masks))
        return instances
    try:
        instances.gt_masks = PolygonMasks(segms)
    except ValueError as e:
        raise ValueError(
            "Cannot use the given segmentations as polygons: set INPUT.MASK_FORMAT='bitmask' "
            "(instance_mask_format) for RLE and array masks."
        ) from e
    return instances


def filter_empty_instances(instances: Instances, by_box=True, by_mask=True, box_threshold=1e-5, return_mask=False):
    """Keep instances whose box is wider and higher than `box_threshold` and whose mask, if any,
    is not empty. Returns them, with `return_mask` also the bool vector of the kept ones.
    """
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
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    size = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    augs: list[T.Augmentation] = [T.ResizeShortestEdge(*size)]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augs.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augs


build_transform_gen = build_augmentation
