"""Ground truth to label maps (LabelEnc, arXiv:2007.03282, Sec. 3.4). n: objects, H x W: size of the padded batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.structures import BitMasks, Instances
from shared.errors import UserError
from shared.ops import render_label_maps

from .encoder import LabelMaps

SOURCES = ("box", "mask")
# Up to this many images share channels, one for every class in any of them: one convolution. Beyond, each has its own.
SHARED_UP_TO = 2


def label_maps(
    instances: Sequence[Instances],
    size: tuple[int, int],
    *,
    num_classes: int,
    source: str = "box",
    pixel_offset: float = 0.5,
    augment: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[LabelMaps]:
    """Label maps of a batch in groups of images, in its order.

    instances: one an image, with gt_boxes in pixels of the padded batch and gt_classes; no objects are normal.
    source: "box", or "mask": the same pyramids, 0 outside of the objects' masks. augment: see `random_intensities`.
    """
    boxes = [x.gt_boxes.tensor for x in instances]
    classes = [x.gt_classes for x in instances]
    factors = [random_intensities(x) for x in boxes] if augment else None
    masks = [object_masks(x, size) for x in instances] if source == "mask" else None
    step = len(boxes) if len(boxes) <= SHARED_UP_TO else 1
    options = {"num_classes": num_classes, "pixel_offset": pixel_offset, "dtype": dtype}
    groups = []
    for rows in (slice(i, i + step) for i in range(0, len(boxes), step)):
        objects = {k: v[rows] for k, v in (("intensities", factors), ("masks", masks)) if v is not None}
        groups.append(LabelMaps(*render_label_maps(boxes[rows], classes[rows], size, **objects, **options)))
    return groups


def random_intensities(boxes: Tensor) -> Tensor:
    """One factor an object, (n,): 1 with probability 0.5, else uniform in (0, 1).

    The paper's "boxes are augmented by multiplying a random number between 0 and 1 with a probability of 0.5": its
    authors' code multiplies the values in the map, not the coordinates.
    """
    return (2 * torch.rand(len(boxes), device=boxes.device)).clamp(max=1)


def object_masks(instances: Instances, size: tuple[int, int]) -> Tensor:
    """(n, H, W) bool, padded with False: of `label_masks` where the mapper has made them, else of gt_masks.

    UserError: objects without masks.
    """
    boxes, image_size = instances.gt_boxes.tensor, instances.image_size
    if len(boxes) == 0:
        return torch.zeros(0, *size, dtype=torch.bool, device=boxes.device)
    if not (instances.has("label_masks") or instances.has("gt_masks")):
        raise UserError(
            "LabelEnc: source (SOURCE) 'mask' needs masks: set dataloader.train.mapper.use_instance_mask=True "
            "(MODEL.MASK_ON), or source to 'box'."
        )
    masks = instances.label_masks if instances.has("label_masks") else to_bitmasks(instances.gt_masks, image_size)
    h, w = image_size
    return F.pad(masks.tensor.to(boxes.device), (0, size[1] - w, 0, size[0] - h))


def to_bitmasks(masks, image_size: tuple[int, int]) -> BitMasks:
    """Polygons drawn at `image_size`, (h, w); bit masks as they are."""
    return masks if isinstance(masks, BitMasks) else BitMasks.from_polygon_masks(masks, *image_size)
